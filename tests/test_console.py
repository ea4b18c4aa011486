"""The console command `foedus`, as a person types it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.small_runs import write_site

ROOT = Path(__file__).parents[1]


def foedus(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "foedus", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        timeout=60,
        check=False,
    )


def test_help_names_the_three_sub_commands() -> None:
    done = foedus("--help")
    assert done.returncode == 0
    assert all(f"foedus {name}" in done.stdout for name in ("simulate", "client", "server"))


def test_help_and_version_import_nothing_but_the_standard_library() -> None:
    code = (
        "import sys; before = set(sys.modules); import foedus\n"
        "foedus.main(['--help']); foedus.main(['--version'])\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new - sys.stdlib_module_names - {'foedus'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_version_is_a_number() -> None:
    done = foedus("--version")
    assert done.returncode == 0
    assert done.stdout.split()[0] == "foedus" and done.stdout.split()[1][0].isdigit()


@pytest.mark.parametrize("word", ["serve", "--simulate", "x"])
def test_an_unknown_sub_command_is_told_the_three_and_status_2(word: str) -> None:
    done = foedus(word)
    assert done.returncode == 2
    assert "expected one of simulate, client, server" in done.stderr and repr(word) in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""


def test_no_word_at_all_shows_the_help_and_status_2() -> None:
    done = foedus()
    assert done.returncode == 2 and "foedus simulate" in done.stdout


def test_an_unknown_log_level_is_refused() -> None:
    done = foedus("client", "--help", FOEDUS_LOG="LOUD")
    assert done.returncode == 2 and "FOEDUS_LOG" in done.stderr


def test_the_words_after_client_reach_its_commands() -> None:
    assert "--verify" in foedus("client", "log", "--help").stdout
    done = foedus("client", "sell")
    assert done.returncode == 2
    assert "foedus client" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("client", "log", "--config", "{config}"),
        ("server", "init", "x", "--folder", "{file}/in", "--address", "localhost:1"),
    ],
    ids=["client", "server"],
)
def test_what_the_system_denies_is_one_line_with_the_file_and_status_2(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    """A folder where a file is expected, and the other way round, stand for a full disk."""
    file, config = tmp_path / "file", write_site(tmp_path / "site", 1)
    file.touch()
    (config.parent / "state" / "receipts.jsonl").mkdir(parents=True)
    done = foedus(*(word.format(file=file, config=config) for word in words))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("foedus: ") and "directory" in line and str(tmp_path) in line


@pytest.mark.parametrize("given", [None, "1"])
def test_flowers_telemetry_is_off_unless_the_user_turns_it_on(given: str | None) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "FLWR_TELEMETRY_ENABLED"}
    if given is not None:
        environment["FLWR_TELEMETRY_ENABLED"] = given
    code = (
        "import os, sys, foedus\n"
        "try: foedus.main(['client', '--help'])\n"
        "except SystemExit: pass\n"
        "print(os.environ['FLWR_TELEMETRY_ENABLED'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, cwd=ROOT, env=environment, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == (given or "0")


@pytest.mark.parametrize(("level", "shown"), [("INFO", "heard"), ("ERROR", "")])
def test_log_lines_of_foedus_go_to_stderr_at_the_level_asked_for(level: str, shown: str) -> None:
    code = (
        "import logging, foedus\n"
        "try: foedus.main(['client', '--help'])\n"
        "except SystemExit: pass\n"
        "logging.getLogger('foedus.client').info('heard')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "FOEDUS_LOG": level},
        check=True,
    )  # fmt: skip
    assert done.stderr.count("heard") == (1 if shown else 0)
