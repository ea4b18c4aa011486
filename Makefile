# Every target sets up .venv by itself; plain pip, nothing else to install first.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test check faults bench clean

setup: $(STAMP)

# torch comes first and by its exact version: a range would fetch gigabytes of CUDA libraries where
# a CPU build would do.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[ray,dev]"
	touch $(STAMP)

demo: setup
	rm -rf outputs/demo
	$(BIN)/foedus simulate output_dir=outputs/demo federation.rounds=5

# All but the longer part of the fault harness, which `make faults` runs.
test: setup
	$(BIN)/python -m pytest -m "not thorough"

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Kills processes and breaks files of a small consortium; renews the table in docs/reliability.md.
faults: setup
	$(BIN)/python -m pytest -m faults tests/faults; status=$$?; \
	$(BIN)/python -m tests.faults.page && exit $$status

bench: setup
	$(BIN)/python -m benchmarks

clean:
	rm -rf outputs .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
