"""The engine changes where sites run, and not what comes out."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from tests.small_simulations import simulate


@pytest.mark.ray
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the extra `ray` is absent")
def test_ray_gives_the_adapter_of_the_in_process_engine(tmp_path: Path) -> None:
    words = ("federation.rounds=2", "federation.weighting=examples", "server_optimizer=momentum")
    here = simulate(tmp_path / "here", *words)
    on_ray = simulate(tmp_path / "ray", "engine=ray", *words)
    assert on_ray.state.layout == here.state.layout
    for name, tensor in here.state.tensors.items():
        np.testing.assert_allclose(on_ray.state.tensors[name], tensor, rtol=0, atol=1e-4)
    assert any(np.abs(tensor).max() > 1e-2 for tensor in here.state.tensors.values())
    for got, expected in zip(on_ray.records, here.records, strict=True):
        assert len(got.admitted) == len(expected.admitted) == 2 and not got.rejected
        for metric in ("train_loss", "sites_loss", "central_accuracy"):
            assert got.metrics[metric] == pytest.approx(expected.metrics[metric], abs=1e-4)
