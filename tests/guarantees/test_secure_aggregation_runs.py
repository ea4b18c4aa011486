"""Whole runs with real models: masks change who can read an update, and not what comes out."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from client.app import load_site, make_app
from protocol.adapter import AdapterState
from protocol.consortium.identity import Identity, save_identity
from protocol.consortium.roster import Member, Roster
from protocol.errors import FoedusError
from protocol.messages import METRICS
from protocol.secure_aggregation.task import ring_of
from protocol.secure_aggregation.wire import SECURE, Phase
from protocol.settings import RunSettings
from server.app import CoordinatorSettings, Plan, run_plan
from server.coordinator import RunResult
from server.observer import LogObserver
from server.records import RoundRecord
from simulations.engines.in_process import InProcessGrid
from tests.little_secure_sites import SecureGrid
from tests.small_runs import clause_records, small_run, with_federation, write_site
from tests.small_simulations import simulate

NUM_SITES = 3


def secure(run: RunSettings) -> RunSettings:
    run = with_federation(run, min_cohort=2, quorum=2)
    return replace(run, secure_aggregation=replace(run.secure_aggregation, enabled=True))


def firms(folder: Path) -> tuple[list[Path], Path]:
    """Three firms of unequal size with keys, and their roster."""
    identities = [Identity.generate() for _ in range(NUM_SITES)]
    members = tuple(Member(f"firm {i}", each.public_key) for i, each in enumerate(identities))
    folder.mkdir(parents=True)
    roster = folder / "roster.json"
    roster.write_text(Roster("test", 1, members).to_json())
    paths = []
    for index, identity in enumerate(identities, start=1):
        place = folder / f"site-{index}"
        path = write_site(place, index, clause_records(index, per_label=index + 1))
        save_identity(place / "identity.pem", identity)
        more = "identity: identity.pem\nroster: ../roster.json\n"
        path.write_text(path.read_text() + more + "policy:\n  minimum_cohort: 3\n")
        paths.append(path)
    return paths, roster


def federate(folder: Path, run: RunSettings) -> tuple[RunResult, InProcessGrid]:
    grid, plan = federation(folder, run)
    return run_plan(grid, plan), grid


def federation(folder: Path, run: RunSettings) -> tuple[InProcessGrid, Plan]:
    paths, roster = firms(folder / "firms")
    if not run.secure_aggregation.enabled:
        for path in paths:
            path.write_text(path.read_text().replace("minimum_cohort: 3", "minimum_cohort: 0"))
    app = make_app(lambda context: load_site(paths[context.node_id - 1]))
    settings = CoordinatorSettings(str(folder / "out"), roster=str(roster))

    class Recording(SecureGrid):
        def __init__(self) -> None:
            InProcessGrid.__init__(self, app, NUM_SITES)
            self._lose, self._alter = (lambda *_: False), (lambda node, phase, content: content)
            self._twice, self._phase_of, self._lost = (), {}, set()
            self.requests, self.replies = [], []

    return Recording(), Plan(run, settings, LogObserver())


def assert_close(got: AdapterState, expected: AdapterState, atol: float) -> None:
    assert got.layout == expected.layout
    for name, tensor in expected.tensors.items():
        np.testing.assert_allclose(got.tensors[name], tensor, rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize(
    ("method", "weighting"), [("ffa", "uniform"), ("fedit", "examples"), ("fedsa", "uniform")]
)
def test_a_masked_round_gives_the_adapter_of_a_plain_one(
    tmp_path: Path, method: str, weighting: str
) -> None:
    run = small_run(method, rounds=1, weighting=weighting, update_norm_bound=5.0)
    plain, _ = federate(tmp_path / "plain", run)
    masked, grid = federate(tmp_path / "masked", secure(run))
    atol = NUM_SITES * ring_of(secure(run), NUM_SITES).resolution
    assert_close(masked.state, plain.state, atol)
    (record,) = masked.records
    assert record.aggregated and len(record.admitted) == NUM_SITES and not record.rejected
    assert not {"num_examples", "train_loss", "num_steps"} & set(record.metrics)
    assert isinstance(grid, SecureGrid)
    assert {phase for _, phase, _ in grid.replies} == set(Phase)
    assert all(METRICS not in content and SECURE in content for *_, content in grid.replies)


def test_fewer_sites_than_a_firm_demands_are_given_nothing(tmp_path: Path) -> None:
    run = with_federation(secure(small_run("ffa", rounds=1)), cohort_fraction=0.6)
    grid, plan = federation(tmp_path, run)
    with pytest.raises(FoedusError, match="none of 1 rounds"):
        run_plan(grid, plan)
    history = json.loads((tmp_path / "out" / "history.json").read_text(encoding="utf-8"))
    (record,) = map(RoundRecord.from_json, history["rounds"])
    assert not record.aggregated and len(record.cohort) == 2
    assert {r["detail"] for r in record.rejected} == {"share: cohort_too_small"}
    assert isinstance(grid, SecureGrid)
    assert {phase for _, phase, _ in grid.replies} == {Phase.ADVERTISE, Phase.SHARE}


def test_a_simulation_gives_its_sites_keys_and_a_roster_and_keeps_them(tmp_path: Path) -> None:
    words = ("secure_aggregation=on", "strategy=ffa", "data.firms=3", "data.train_per_firm=12")
    result = simulate(tmp_path, *words, "federation.rounds=1", "federation.evaluate_every=0")
    assert all(record.aggregated and record.secure_attempts == 1 for record in result.records)
    keys = sorted(tmp_path.glob("sites/*/identity.pem"))
    assert len(keys) == 3 and (tmp_path / "sites" / "roster.json").is_file()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the extra `ray` is absent")
def test_ray_gives_the_adapter_of_the_in_process_engine_under_masks(tmp_path: Path) -> None:
    words = ("secure_aggregation=on", "federation.rounds=2", "federation.weighting=examples",
             "data.firms=3")  # fmt: skip
    here = simulate(tmp_path / "here", *words)
    on_ray = simulate(tmp_path / "ray", "engine=ray", *words)
    assert all(r.aggregated and len(r.admitted) == 3 and not r.rejected for r in on_ray.records)
    for (_, a, b), (_, a2, b2) in zip(on_ray.state.pairs(), here.state.pairs(), strict=True):
        np.testing.assert_allclose(b @ a, b2 @ a2, rtol=0, atol=1e-3)
