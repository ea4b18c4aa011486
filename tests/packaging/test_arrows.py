"""The arrows between the rooms, as the architecture draws them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINT = Path(sys.executable).parent / "lint-imports"


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [LINT, "--no-cache"], cwd=folder, capture_output=True, text=True, check=False
    )


def test_no_room_imports_what_it_may_not() -> None:
    result = lint(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "protocol imports no other room KEPT" in result.stdout
    assert " 0 broken" in result.stdout


@pytest.mark.parametrize(
    ("room", "imported"),
    [("protocol", "models"), ("client", "server"), ("server", "simulations")],
)
def test_an_arrow_the_wrong_way_would_be_found(tmp_path: Path, room: str, imported: str) -> None:
    rooms = ("protocol", "models", "client", "strategies", "server", "simulations", "conf")
    for name in rooms:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    (tmp_path / room / "__init__.py").write_text(f"import {imported}\n")
    result = lint(tmp_path)
    assert result.returncode != 0 and " 1 broken" in result.stdout
