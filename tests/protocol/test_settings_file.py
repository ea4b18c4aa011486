"""Settings files are written so that they read back equal, whatever is in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from protocol.codec import setting
from protocol.errors import FoedusError, SettingsError
from protocol.settings_file import commented_yaml, read_settings


@dataclass(frozen=True)
class Inner:
    hours: tuple[str, ...] = setting((), doc="when")
    share: float = setting(0.5, doc="how much")


@dataclass(frozen=True)
class Outer:
    name: str = setting(doc="who")
    number: int = setting(3, minimum=1, doc="how many")
    inner: Inner = field(default_factory=Inner)


HARD = Outer('a "name": # ${number} \\ é\n- x', 7, Inner(("Mon-Fri 19:00", "{}"), 1e-05))


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "settings.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_value_reads_back_and_every_setting_has_its_meaning(tmp_path: Path) -> None:
    text = commented_yaml(HARD, "Opening line.\nSecond.")
    assert read_settings(Outer, written(tmp_path, text), "settings") == HARD
    assert text.startswith("# Opening line.\n# Second.\n")
    for doc in ("# who", "# how many", "# when", "# how much"):
        assert doc in text


def test_what_is_left_out_is_shown_and_not_set(tmp_path: Path) -> None:
    text = commented_yaml(HARD, "Opening.", left_out={"number", "inner"})
    assert read_settings(Outer, written(tmp_path, text), "settings") == Outer(HARD.name)
    assert "# number: 7" in text
    uncommented = "".join(
        line.removeprefix("# ") if line.startswith(("# number", "# inner", "#   ")) else line
        for line in text.splitlines(keepends=True)
    )
    assert read_settings(Outer, written(tmp_path, uncommented), "settings") == HARD


def test_everything_wrong_in_a_file_is_told_at_once(tmp_path: Path) -> None:
    path = written(tmp_path, "number: 0\ncolour: red\n")
    with pytest.raises(SettingsError) as refused:
        read_settings(Outer, path, "settings")
    assert len(refused.value.problems) == 3 and str(path) in str(refused.value)


@pytest.mark.parametrize("text", ["{", "name: ${nowhere}", "- a"])
def test_what_is_no_settings_file_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(FoedusError, match="settings"):
        read_settings(Outer, written(tmp_path, text), "settings")


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(FoedusError, match=r"Expected a site at .*, got no file"):
        read_settings(Outer, tmp_path / "none.yaml", "a site")
