"""Secure rounds over the real coordinator and sites: the plain run's adapter, whoever drops out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from client.secure_aggregation.memory import RunMemory
from client.secure_aggregation.session import SitePart
from protocol.adapter import layout_size
from protocol.consortium.identity import Identity
from protocol.errors import FoedusError, WireError
from protocol.messages import Request
from protocol.methods import METHODS, downloaded_factors
from protocol.secure_aggregation.keys import SessionKeys
from protocol.secure_aggregation.messages import AdvertiseReply, ShareReply, ShareRequest
from protocol.secure_aggregation.packing import packed_size
from protocol.secure_aggregation.task import ring_of
from protocol.secure_aggregation.transcript import advertisement_to_sign
from protocol.secure_aggregation.wire import MASKED, SECURE, Phase, SessionId
from protocol.settings import RunSettings
from server.coordinator import RunResult
from server.observer import LogObserver
from server.records import RoundRecord
from server.secure_aggregation.attempts import AttemptCounter
from server.secure_aggregation.round import SecureRound
from strategies.registry import build_strategy
from tests.little_secure_sites import (
    LittleTrainer,
    SecureGrid,
    SecureSites,
    coordinate_securely,
    little_secure_run,
)
from tests.little_sites import little_state, little_update
from tests.secure_sessions import IDENTITIES, SESSION, make_coordinator, terms_for
from tests.small_runs import RUN_ID, with_federation
from tests.strategies.adapters import run_round


def secure_run(
    folder: Path, run: RunSettings, num_sites: int = 4, **grid: Any
) -> tuple[RunResult, SecureGrid, SecureSites]:
    sites = SecureSites(folder / "sites", num_sites)
    network = SecureGrid(sites, num_sites, **grid)
    return coordinate_securely(network, run, folder, sites.roster), network, sites


def plain_state(run: RunSettings, nodes_by_round: list[list[int]]) -> Any:
    """The adapter of the same rounds without masks."""
    strategy = build_strategy(run.federation)
    state = strategy.initial_state(little_state(run))
    for round_, nodes in enumerate(nodes_by_round, start=1):
        request = Request("train", RUN_ID, round_, run, state)
        updates = [state.replace_tensors(little_update(node, request)) for node in nodes]
        state = run_round(strategy, round_, state, updates, [10 * node for node in nodes])
    return state


def assert_same_adapter(run: RunSettings, got: Any, expected: Any, num_sites: int) -> None:
    """Equal to what rounding in the ring can move; the products, as a basis may turn."""
    atol = 20 * ring_of(run, num_sites).resolution
    for (module, a, b), (_, a2, b2) in zip(got.pairs(), expected.pairs(), strict=True):
        np.testing.assert_allclose(b @ a, b2 @ a2, rtol=0, atol=atol, err_msg=module)
    for name, tensor in got.tensors.items():
        if name.endswith("head.weight"):
            np.testing.assert_allclose(tensor, expected.tensors[name], rtol=0, atol=atol)
    assert got.digest() != little_state(run).digest()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("weighting", "optimizer"), [("uniform", "none"), ("examples", "momentum")]
)
def test_every_method_gives_the_plain_run_s_adapter(
    tmp_path: Path, method: str, weighting: str, optimizer: str
) -> None:
    run = little_secure_run(
        method, rounds=2, weighting=weighting, server_optimizer=optimizer, weight_cap=25
    )
    result, _, _ = secure_run(tmp_path, run)
    nodes = [1, 2, 3, 4]
    assert_same_adapter(run, result.state, plain_state(run, [nodes, nodes]), 4)
    for record in result.records:
        assert record.aggregated and record.secure_attempts == 1
        assert record.admitted == ("1", "2", "3", "4")
        assert not record.silent and not record.rejected


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """patient(phases): wait a second and a half in these, where a site is silent, and long in all
    others, however busy the machine is."""

    def set_deadlines(*phases: Phase) -> None:
        shares = {phase: 1.5 / 60 if phase in phases else 1.0 for phase in Phase}
        monkeypatch.setattr("server.secure_aggregation.round.DEADLINE_SHARES", shares)

    return set_deadlines


def losing(*lost: tuple[int, Phase]) -> Any:
    return lambda node, phase, session: (node, phase) in lost


@pytest.mark.parametrize(
    ("phase", "in_sum"),
    [
        (Phase.ADVERTISE, [1, 2, 3, 4]),
        (Phase.SHARE, [1, 2, 3, 4]),
        (Phase.MASKED_INPUT, [1, 2, 3, 4]),
        (Phase.CONFIRM, [1, 2, 3, 4, 5]),
        (Phase.UNMASK, [1, 2, 3, 4, 5]),
    ],
)
def test_a_site_that_drops_out_in_any_phase_does_not_stop_the_round(
    tmp_path: Path, phase: Phase, in_sum: list[int], patient: Callable[..., None]
) -> None:
    patient(phase)
    run = little_secure_run("ffa", rounds=1, evaluate_every=0)
    result, _, _ = secure_run(tmp_path, run, 5, lose=losing((5, phase)))
    (record,) = result.records
    assert record.aggregated and record.secure_attempts == 1
    assert record.silent == ("5",) and record.admitted == tuple(map(str, in_sum))
    assert_same_adapter(run, result.state, plain_state(run, [in_sum]), 5)


def test_below_the_threshold_nothing_is_opened_and_the_round_is_tried_again_with_the_others(
    tmp_path: Path, patient: Callable[..., None]
) -> None:
    patient(Phase.MASKED_INPUT)
    run = little_secure_run("ffa", rounds=1)
    lost = ((4, Phase.MASKED_INPUT), (5, Phase.MASKED_INPUT))
    result, grid, sites = secure_run(tmp_path, run, 5, lose=losing(*lost))
    (record,) = result.records
    assert record.aggregated and record.secure_attempts == 2
    assert record.admitted == ("1", "2", "3") and record.silent == ("4", "5")
    assert_same_adapter(run, result.state, plain_state(run, [[1, 2, 3]]), 5)
    sessions = {session.attempt for _, _, session, _ in grid.requests}
    assert sessions == {1, 2}
    opened = [
        s.attempt for _, phase, s, _ in grid.requests if phase in (Phase.CONFIRM, Phase.UNMASK)
    ]
    assert set(opened) == {2}
    # The second attempt masks what the first has trained: no second training, no second cost.
    assert [sites.trainers[node].trained for node in (1, 2, 3)] == [1, 1, 1]
    masked = [
        content for node, phase, content in grid.replies if (node, phase) == (1, Phase.MASKED_INPUT)
    ]
    first, second = (content.array_records[MASKED][MASKED].data for content in masked)
    assert first != second


def test_a_round_whose_attempts_all_fail_leaves_the_adapter_and_the_run_goes_on(
    tmp_path: Path, patient: Callable[..., None]
) -> None:
    patient(Phase.MASKED_INPUT)

    def lose(node: int, phase: Phase, session: SessionId) -> bool:
        return session.round == 1 and phase is Phase.MASKED_INPUT and node > 1

    run = little_secure_run("ffa", rounds=2, quorum=2, min_cohort=3)
    result, grid, _ = secure_run(tmp_path, run, 3, lose=lose)
    first, second = result.records
    assert not first.aggregated and first.admitted == () and first.secure_attempts == 1
    assert first.bytes_up > 0 and first.train_seconds == 0
    assert second.aggregated and second.admitted == ("1", "2", "3")
    assert all(phase is not Phase.UNMASK or s.round == 2 for _, phase, s, _ in grid.requests)


def test_attempts_are_as_many_as_the_settings_allow(
    tmp_path: Path, patient: Callable[..., None]
) -> None:
    patient(Phase.MASKED_INPUT)

    def lose(node: int, phase: Phase, session: SessionId) -> bool:
        return phase is Phase.MASKED_INPUT and node in (
            2 * session.attempt,
            2 * session.attempt - 1,
        )

    run = little_secure_run("ffa", rounds=1, secure={"attempts": 3})
    result, grid, _ = secure_run(tmp_path, run, 6, lose=lose)
    (record,) = result.records
    assert not record.aggregated and record.secure_attempts == 3
    assert record.silent == tuple("123456")
    assert {session.attempt for _, _, session, _ in grid.requests} == {1, 2, 3}
    assert not {Phase.CONFIRM, Phase.UNMASK} & {phase for _, phase, *_ in grid.requests}


def test_replies_that_are_not_the_site_s_own_are_set_aside(tmp_path: Path) -> None:
    def unsigned(node: int, phase: Phase, content: RecordDict) -> RecordDict:
        if phase is not Phase.SHARE or node > 2:
            return content
        record = content.config_records[SECURE]
        return RecordDict({SECURE: ConfigRecord({**dict(record), "signature": bytes(64)})})

    run = little_secure_run("ffa", rounds=1)
    result, _, _ = secure_run(tmp_path, run, 8, alter=unsigned)
    (record,) = result.records
    assert record.aggregated and record.secure_attempts == 1  # 6 of 8 are enough.
    assert {(r["site"], r["reason"]) for r in record.rejected} == {
        ("1", "bad_signature"),
        ("2", "bad_signature"),
    }
    assert record.admitted == tuple("345678")


class Garbling(SitePart):
    """A site of the consortium that seals its shares wrongly, for all or for one."""

    only_to: str = ""

    def share(self, memory: RunMemory, request: ShareRequest) -> tuple[RunMemory, ShareReply]:
        memory, reply = super().share(memory, request)
        wrong = {
            m: bytes(len(box)) if self.only_to in ("", m) else box for m, box in reply.boxes.items()
        }
        return memory, replace(reply, boxes=wrong)


def test_a_site_whose_shares_nobody_can_open_is_left_out_of_the_next_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = little_secure_run("ffa", rounds=1)
    sites = SecureSites(tmp_path / "sites", 5)
    hostile = sites.members[2]

    def part(identity: Identity, *more: Any) -> SitePart:
        return (Garbling if identity.member_id == hostile else SitePart)(identity, *more)

    monkeypatch.setattr("client.secure_aggregation.answer.SitePart", part)
    result = coordinate_securely(SecureGrid(sites, 5), run, tmp_path, sites.roster)
    (record,) = result.records
    assert record.aggregated and record.secure_attempts == 2
    assert record.admitted == ("1", "3", "4", "5")
    assert_same_adapter(run, result.state, plain_state(run, [[1, 3, 4, 5]]), 5)


def test_one_site_s_word_does_not_exclude_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = little_secure_run("ffa", rounds=1)
    sites = SecureSites(tmp_path / "sites", 5)
    monkeypatch.setattr(Garbling, "only_to", sites.members[1])
    hostile = sites.members[2]

    def part(identity: Identity, *more: Any) -> SitePart:
        return (Garbling if identity.member_id == hostile else SitePart)(identity, *more)

    monkeypatch.setattr("client.secure_aggregation.answer.SitePart", part)
    result = coordinate_securely(SecureGrid(sites, 5), run, tmp_path, sites.roster)
    (record,) = result.records
    assert record.aggregated and record.secure_attempts == 1
    assert record.admitted == ("2", "3", "4", "5")
    assert [(r["site"], r["detail"]) for r in record.rejected] == [
        ("1", "masked_input: bad_signature")
    ]


def test_keys_that_nobody_can_agree_with_are_set_aside_at_once() -> None:
    terms, keys = terms_for(3), SessionKeys.generate()
    context = terms.context(SESSION)
    genuine = keys.advertise(context, IDENTITIES[0])
    low_order = bytes(32)
    for bad in (
        replace(genuine, encryption_key=low_order),
        replace(genuine, masking_key=low_order),
    ):
        coordinator = make_coordinator(3, 2)
        statement = advertisement_to_sign(
            context, bad.member_id, bad.encryption_key, bad.masking_key, bad.seed_commitment
        )
        bad = replace(bad, signature=IDENTITIES[0].sign(statement))
        with pytest.raises(WireError, match="low order"):
            coordinator.take_advertisement(AdvertiseReply(SESSION, bad))
        coordinator.take_advertisement(AdvertiseReply(SESSION, genuine))


def test_a_duplicate_reply_counts_once(tmp_path: Path) -> None:
    run = little_secure_run("ffa", rounds=1)
    result, _, _ = secure_run(tmp_path, run, 3, twice=[Phase.MASKED_INPUT, Phase.UNMASK])
    (record,) = result.records
    assert record.aggregated and record.admitted == ("1", "2", "3")
    assert {r["reason"] for r in record.rejected} == {"duplicate"}
    assert_same_adapter(run, result.state, plain_state(run, [[1, 2, 3]]), 3)


def test_a_site_that_sends_more_than_its_bound_spoils_the_round_and_not_the_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that puts noise in the ring in place of its update gives a mean that nobody can have."""
    run = little_secure_run("ffa", rounds=1, update_norm_bound=0.2)
    sites = SecureSites(tmp_path / "sites", 3)

    class Hostile(LittleTrainer):
        def train(self, request: Request) -> Any:
            kept = super().train(request)
            kept.values[:] = 0.2  # Each coordinate is in bounds, the norm is far over.
            return kept

    sites.trainers[1] = Hostile(1)
    grid = SecureGrid(sites, 3)
    result = coordinate_securely(grid, run, tmp_path, sites.roster)
    (record,) = result.records
    assert not record.aggregated and record.admitted == ()
    start = build_strategy(run.federation).initial_state(little_state(run))
    assert result.state.digest() == start.digest()


def test_a_record_tells_the_bytes_of_all_messages_and_nothing_of_single_sites(
    tmp_path: Path,
) -> None:
    run = little_secure_run(
        "ffa", rounds=1, secure={"bits": 16}, weighting="examples", weight_cap=9
    )
    result, grid, _ = secure_run(tmp_path, run, 3)
    (record,) = result.records
    size = packed_size(layout_size(LittleTrainer(1).uploaded(_request(run))) + 1, 16)
    arrays = [
        c.array_records[MASKED][MASKED] for _, p, c in grid.replies if p is Phase.MASKED_INPUT
    ]
    assert [len(array.data) for array in arrays] == [size] * 3
    assert record.bytes_up == sum(_wire_bytes(content) for _, _, content in grid.replies)
    assert record.bytes_down == sum(_wire_bytes(content) for *_, content in grid.requests)
    assert not {"num_examples", "train_loss"} & set(record.metrics)
    assert record.train_seconds == pytest.approx(1.5)


def _wire_bytes(content: RecordDict) -> int:
    total = 0
    for record in content.values():
        if isinstance(record, ArrayRecord):
            total += sum(len(array.data) for array in record.values())
            continue
        for name, value in record.items():
            total += len(name)
            for each in value if isinstance(value, list) else [value]:
                total += len(each) if isinstance(each, str | bytes) else 8
    return total


def _request(run: RunSettings) -> Request:
    return Request("train", RUN_ID, 1, run, little_state(run))


def test_records_of_runs_without_secure_rounds_are_still_read() -> None:
    values = dict(
        round=1, seconds=1.0, cohort=["a"], admitted=["a"], silent=[], rejected=[],
        aggregated=True, bytes_up=1, bytes_down=1, bytes_evaluation=0, train_seconds=1.0,
        aggregate_seconds=0.1, metrics={}, site_metrics={},
    )  # fmt: skip
    assert RoundRecord.from_json(values).secure_attempts == 0


def test_without_a_roster_a_secure_run_does_not_start(tmp_path: Path) -> None:
    sites = SecureSites(tmp_path / "sites", 2)
    with pytest.raises(FoedusError, match=r"coordinator\.roster"):
        coordinate_securely(SecureGrid(sites, 2), little_secure_run(), tmp_path, None)


def test_a_lone_site_is_never_asked_for_a_masked_input(tmp_path: Path) -> None:
    run = little_secure_run("ffa", rounds=1)
    result, grid, _ = secure_run(tmp_path, run, 1)
    assert not result.records[0].aggregated and not grid.requests


class Killed(BaseException):
    """The coordinator's process ends."""


@pytest.mark.parametrize("after_all_shares", [False, True])
def test_a_run_that_was_cut_off_in_a_round_goes_on_under_a_new_attempt(
    tmp_path: Path, after_all_shares: bool
) -> None:
    """Also where the sum had been opened: the sites open that of the same list again, and it is
    the sum of the same updates."""
    run = little_secure_run("ffa", rounds=2)
    unmasked = 0

    def dies_first(node: int, phase: Phase, session: SessionId) -> bool:
        if session.round == 2 and phase is Phase.UNMASK:
            raise Killed
        return False

    def dies_last(node: int, phase: Phase, content: RecordDict) -> RecordDict:
        nonlocal unmasked
        unmasked += phase is Phase.UNMASK
        if unmasked == 6:
            raise Killed
        return content

    sites = SecureSites(tmp_path / "sites", 3)
    faults: dict[str, Any] = {"alter": dies_last} if after_all_shares else {"lose": dies_first}
    with pytest.raises(Killed):
        coordinate_securely(SecureGrid(sites, 3, **faults), run, tmp_path, sites.roster)
    for node in (1, 2, 3):
        sites.restart(node)
    grid = SecureGrid(sites, 3)
    result = coordinate_securely(grid, run, tmp_path, sites.roster, resume=True)
    assert [record.aggregated for record in result.records] == [True, True]
    assert {session.attempt for _, _, session, _ in grid.requests} == {2}
    assert all(sites.trainers[node].trained == 0 for node in (1, 2, 3))
    assert_same_adapter(run, result.state, plain_state(run, [[1, 2, 3], [1, 2, 3]]), 3)


def test_a_round_that_was_opened_is_not_opened_again_for_fewer_sites(tmp_path: Path) -> None:
    """The difference of the two sums would be one site's update."""
    run = little_secure_run("ffa", rounds=1)

    def dies(node: int, phase: Phase, content: RecordDict) -> RecordDict:
        if (node, phase) == (4, Phase.UNMASK):
            raise Killed
        return content

    sites = SecureSites(tmp_path / "sites", 4)
    with pytest.raises(Killed):
        coordinate_securely(SecureGrid(sites, 4, alter=dies), run, tmp_path, sites.roster)
    path = tmp_path / "checkpoints"
    run_id = json.loads((path / "secure_attempts.json").read_text())["run_id"]
    state = build_strategy(run.federation).initial_state(little_state(run))
    grid = SecureGrid(sites, 4)
    request = Request("train", run_id, 1, run, state.subset(downloaded_factors("ffa")))
    outcome = SecureRound(
        grid, request, LittleTrainer(1).uploaded(request), sites.roster,
        AttemptCounter(path / "secure_attempts.json"), LogObserver(),
    ).run([1, 2, 3])  # fmt: skip
    assert outcome.mean is None and outcome.survivors == ()
    assert {str(aside.detail) for aside in outcome.set_aside} == {"masked_input: wrong_phase"}


def test_attempts_are_counted_by_run_and_round_and_survive_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "attempts.json"
    assert [AttemptCounter(path).next("a" * 32, 1) for _ in range(3)] == [1, 2, 3]
    assert AttemptCounter(path).next("a" * 32, 2) == 1
    assert AttemptCounter(path).next("a" * 32, 1) == 4, "a run that lost its newest checkpoint"
    assert AttemptCounter(path).next("b" * 32, 2) == 1
    path.write_text("{")
    with pytest.raises(FoedusError, match="damaged"):
        AttemptCounter(path).next("b" * 32, 2)


def test_a_cohort_is_sampled_as_without_masks(tmp_path: Path) -> None:
    run = with_federation(little_secure_run("ffa", rounds=2), cohort_fraction=0.5)
    result, _, _ = secure_run(tmp_path, run, 6)
    assert all(len(record.admitted) == 3 == len(record.cohort) for record in result.records)
