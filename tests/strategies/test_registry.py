"""Every method of the protocol has a strategy and a configuration file."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from protocol.codec import decode
from protocol.errors import FoedusError
from protocol.methods import METHODS
from protocol.settings import SERVER_OPTIMIZERS, FederationSettings
from strategies import STRATEGIES, build_strategy
from tests.strategies.adapters import settings

CONF = Path(__file__).parents[2] / "conf"
FILES = sorted([*(CONF / "strategy").glob("*.yaml"), *(CONF / "server_optimizer").glob("*.yaml")])


def test_every_method_of_the_protocol_has_a_strategy() -> None:
    assert set(STRATEGIES) == set(METHODS)
    for method in METHODS:
        assert build_strategy(settings(method)).method == method


def test_an_unknown_method_is_refused_with_the_known_names() -> None:
    with pytest.raises(FoedusError, match="fedsvd, ffa, rolora, fedit, fedsa, got 'fedavg'"):
        build_strategy(settings("fedavg"))


def test_a_strategy_of_another_method_is_refused() -> None:
    with pytest.raises(FoedusError, match=r"method=ffa .*'fedit'"):
        STRATEGIES["ffa"](settings("fedit"))


def test_every_choice_has_its_file() -> None:
    assert {f.stem for f in FILES if f.parent.name == "strategy"} == set(METHODS)
    assert {f.stem for f in FILES if f.parent.name == "server_optimizer"} == set(SERVER_OPTIMIZERS)


@pytest.mark.parametrize("file", FILES, ids=lambda f: f"{f.parent.name}={f.stem}")
def test_a_file_opens_with_its_launch_command_comments_every_key_and_decodes(file: Path) -> None:
    lines = file.read_text().splitlines()
    assert lines[0] == "# @package federation"  # Hydra reads it on the first line only.
    assert lines[1] == f"# foedus simulate {file.parent.name}={file.stem}"
    for above, line in pairwise(lines):
        if line and not line.startswith("#"):
            assert above.startswith("# "), f"{line} has no comment"

    with initialize_config_dir(str(CONF), version_base=None):
        composed = OmegaConf.to_container(compose(overrides=[f"+{file.parent.name}={file.stem}"]))
    assert isinstance(composed, dict)
    assert list(composed) == ["federation"]
    decoded = decode(FederationSettings, composed["federation"], str(file))
    chosen = decoded.method if file.parent.name == "strategy" else decoded.server_optimizer
    assert chosen == file.stem
    fields = {field.name for field in dataclasses.fields(FederationSettings)}
    assert set(composed["federation"]) <= fields
