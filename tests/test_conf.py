"""Every configuration file opens with the command that launches it, and that command composes."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from protocol.compatibility import check_compatibility
from protocol.errors import SettingsError
from server.app import compose_settings
from simulations.settings import simulation_settings, with_labels

CONF = Path(__file__).resolve().parent.parent / "conf"
FILES = sorted(path.relative_to(CONF).as_posix() for path in CONF.rglob("*.yaml"))


def launch_words(name: str) -> list[str]:
    lines = (CONF / name).read_text(encoding="utf-8").splitlines()
    # Hydra reads a package directive on the first line only.
    first = lines[1] if lines[0].startswith("# @package") else lines[0]
    assert first.startswith("# "), f"{name} opens with {first!r}"
    return shlex.split(first.removeprefix("# "))


def composed(overrides: list[str]) -> dict[str, Any]:
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        config = compose("simulate", overrides)
    values: Any = OmegaConf.to_container(config, resolve=True)
    return dict(values)


@pytest.mark.parametrize("name", [name for name in FILES if name != "coordinate.yaml"])
def test_the_launch_command_of_every_file_gives_settings_that_may_run(name: str) -> None:
    words = launch_words(name)
    assert words[:2] == ["foedus", "simulate"]
    settings = simulation_settings(composed(words[2:]))
    check_compatibility(with_labels(settings, ("notice", "payment")).run, name)


@pytest.mark.parametrize("name", FILES)
def test_every_key_of_every_file_is_commented(name: str) -> None:
    lines = (CONF / name).read_text(encoding="utf-8").splitlines()
    before = {line.strip(): lines[max(0, i - 1)].strip() for i, line in enumerate(lines)}
    for key, value in (yaml.safe_load("\n".join(lines)) or {}).items():
        if key in ("defaults", "hydra") or isinstance(value, dict):
            continue
        line = next(text for text in before if text.startswith(f"{key}:"))
        neighbours = [i for i, text in enumerate(lines) if text.strip() == line]
        above = lines[: neighbours[0]]
        assert any(text.startswith("#") for text in above[-4:]), f"{name}: {key} has no comment"


def test_a_group_option_is_what_its_file_says() -> None:
    values = composed(["strategy=rolora", "engine=ray", "model=novels", "task=instruct"])
    assert values["federation"]["method"] == "rolora"
    assert values["engine"]["name"] == "ray"
    assert values["model"]["id"] == "novels" and "q_proj" in values["adapter"]["targets"]
    assert values["training"]["batch_size"] == 8


def test_the_coordinator_composes_the_same_run_as_a_simulation() -> None:
    words = ["task.labels=[notice,payment]", "strategy=ffa", "federation.rounds=3"]
    simulated = simulation_settings(composed(words)).run
    assert compose_settings(words) == simulated


def test_all_problems_of_all_parts_are_told_at_once() -> None:
    words = ["adapter.rank=0", "simulation.num_sites=0", "engine.name=spark", "data.firms=99"]
    with pytest.raises(SettingsError) as caught:
        simulation_settings(composed(words))
    for key in ("adapter.rank", "simulation.num_sites", "engine.name", "data.firms"):
        assert any(problem.startswith(key) for problem in caught.value.problems)
