"""Whatever sites send, all of it at once: the round completes with the good replies alone."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from protocol.adapter import FloatArray
from protocol.flat_array import FLAT
from protocol.messages import ARRAYS, CONFIG, METRICS, Reply, Request
from protocol.reasons import RefusalReason, RejectionReason
from simulations.engines.in_process import InProcessGrid
from strategies.registry import build_strategy
from tests.little_sites import (
    UnreliableGrid,
    coordinate,
    good_reply,
    little_app,
    little_run,
    little_state,
    little_update,
)

GOOD = (1, 2, 3)
Answer = Callable[[int, Request], RecordDict | Error]
R = RejectionReason


def reply(node: int, request: Request, **changes: Any) -> RecordDict:
    """A good reply but for the changed facts."""
    facts: dict[str, Any] = {
        "run_id": request.run_id,
        "round": request.round,
        "metrics": {"num_examples": 1e6},
        "update": little_update(node, request),
    }
    return Reply(**{**facts, **changes}).to_content()


def filled(node: int, request: Request, value: float) -> RecordDict:
    """One coordinate of the update replaced."""
    update = {name: tensor.copy() for name, tensor in little_update(node, request).items()}
    next(iter(update.values())).flat[0] = value
    return reply(node, request, update=update)


def renamed(node: int, request: Request) -> dict[str, FloatArray]:
    return {name + ".x": tensor for name, tensor in little_update(node, request).items()}


def transposed(node: int, request: Request) -> dict[str, FloatArray]:
    return {name: tensor.T.copy() for name, tensor in little_update(node, request).items()}


def weighted(value: float) -> Answer:
    return lambda node, request: reply(node, request, metrics={"num_examples": value})


def with_array(array: Callable[[Array], Array]) -> Answer:
    """A good reply whose array went through `array`."""

    def respond(node: int, request: Request) -> RecordDict:
        content = reply(node, request)
        changed = array(content.array_records[ARRAYS][FLAT])
        return RecordDict({**dict(content), ARRAYS: ArrayRecord({FLAT: changed})})

    return respond


def raw(data: bytes, like: Array) -> Array:
    return Array(dtype=like.dtype, shape=like.shape, stype=like.stype, data=data)


def npy(array: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def announced(num_coordinates: int) -> bytes:
    """A header in front of nothing."""
    buffer = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (num_coordinates,)}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()


def with_version(node: int, request: Request) -> RecordDict:
    content = reply(node, request)
    config = dict(content.config_records[CONFIG]) | {"version": 2}
    return RecordDict({**dict(content), CONFIG: ConfigRecord(config)})


def with_record(node: int, request: Request) -> RecordDict:
    return RecordDict({**dict(reply(node, request)), "note": ConfigRecord({"text": "hello"})})


def with_metrics(**values: Any) -> Answer:
    return lambda node, request: RecordDict(
        {**dict(reply(node, request)), METRICS: MetricRecord(values)}
    )


def raises(node: int, request: Request) -> RecordDict:
    raise RuntimeError("the site's code failed")


BAD: dict[str, tuple[Answer, RejectionReason]] = {
    "wrong keys": (lambda n, r: reply(n, r, update=renamed(n, r)), R.WRONG_LAYOUT),
    "wrong shape": (lambda n, r: reply(n, r, update=transposed(n, r)), R.WRONG_LAYOUT),
    "missing tensors": (lambda n, r: reply(n, r, update={}), R.MALFORMED),
    "too few coordinates": (
        with_array(lambda a: raw(npy(a.numpy()[:-1]), a)),
        R.WRONG_SHAPE,
    ),
    "wrong dtype": (with_array(lambda a: Array(a.numpy().astype(np.float64))), R.WRONG_DTYPE),
    "hidden dtype": (with_array(lambda a: raw(npy(a.numpy().astype("f8")), a)), R.WRONG_DTYPE),
    "NaN": (lambda n, r: filled(n, r, np.nan), R.NOT_FINITE),
    "infinity": (lambda n, r: filled(n, r, np.inf), R.NOT_FINITE),
    "minus infinity": (lambda n, r: filled(n, r, -np.inf), R.NOT_FINITE),
    "norm over the bound": (lambda n, r: filled(n, r, 101.0), R.NORM_OVER_BOUND),
    "largest float": (lambda n, r: filled(n, r, 3e38), R.NORM_OVER_BOUND),
    "negative weight": (weighted(-5.0), R.BAD_WEIGHT),
    "NaN weight": (weighted(float("nan")), R.BAD_WEIGHT),
    "infinite weight": (weighted(float("inf")), R.BAD_WEIGHT),
    "zero weight": (weighted(0.0), R.BAD_WEIGHT),
    "no weight": (with_metrics(train_loss=1.0), R.MALFORMED),
    "weights in a list": (with_metrics(num_examples=[1.0, 2.0]), R.MALFORMED),
    "unknown metric": (with_metrics(num_examples=1.0, clients=9.0), R.MALFORMED),
    "NaN loss": (with_metrics(num_examples=1.0, train_loss=float("nan")), R.NOT_FINITE),
    "wrong round": (lambda n, r: reply(n, r, round=r.round + 1), R.WRONG_ROUND),
    "wrong run": (lambda n, r: reply(n, r, run_id="f" * 32), R.WRONG_RUN),
    "wrong version": (with_version, R.WRONG_VERSION),
    "error reply": (lambda n, r: Error(1, "/home/firm/contracts: no such file"), R.ERROR_REPLY),
    "code that raises": (raises, R.ERROR_REPLY),
    "refusal": (
        lambda n, r: Reply(r.run_id, r.round, RefusalReason.NO_DATA).to_content(),
        R.REFUSED_BY_SITE,
    ),
    "invented status": (lambda n, r: reply(n, r, status="we object"), R.MALFORMED),
    "unknown record": (with_record, R.MALFORMED),
    "nothing": (lambda n, r: RecordDict({}), R.MALFORMED),
    "garbage bytes": (with_array(lambda a: raw(b"\x00garbage" * 99, a)), R.MALFORMED),
    "no bytes": (with_array(lambda a: raw(b"", a)), R.MALFORMED),
    "truncated bytes": (with_array(lambda a: raw(a.data[:-3], a)), R.WRONG_SHAPE),
    "a pickle": (
        with_array(lambda a: raw(npy(np.array([print], dtype=object), allow_pickle=True), a)),
        R.WRONG_DTYPE,
    ),
    "4 TB announced": (with_array(lambda a: raw(announced(10**12), a)), R.WRONG_SHAPE),
}
NAMES = (*(f"good-{node}" for node in GOOD), *BAD, "silent", "imposter")
SILENT, IMPOSTER = len(NAMES) - 1, len(NAMES)
TWICE = GOOD[1]


class HostileGrid(UnreliableGrid):
    """A network on which one more node answers in another's name."""

    def __init__(self, client_app: ClientApp) -> None:
        super().__init__(client_app, len(NAMES), silent={SILENT}, twice={TWICE})

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies of the imposter claim to come from the first good node."""
        replies = list(super().pull_messages(message_ids))
        for message in replies:
            if message.metadata.src_node_id == IMPOSTER:
                message.metadata.__dict__["_src_node_id"] = GOOD[0]
        return replies


def respond(node: int, request: Request) -> RecordDict | Error:
    name = NAMES[node - 1]
    if request.kind == "evaluate" or name not in BAD:
        return good_reply(node, request)
    return BAD[name][0](node, request)


@pytest.mark.parametrize("method", ["fedsvd", "rolora", "fedsa"])
def test_every_kind_of_bad_reply_at_once_leaves_the_round_to_the_good_ones(
    tmp_path: Path, method: str
) -> None:
    run = little_run(
        method,
        rounds=2,
        weighting="examples",
        server_optimizer="momentum",
        quorum=3,
        min_cohort=3,
        deadline_seconds=1.0,
        evaluate_every=0,
    )
    hostile = coordinate(HostileGrid(little_app(respond)), run, tmp_path / "bad", names=NAMES)
    honest = coordinate(InProcessGrid(little_app(), 3), run, tmp_path / "good", names=NAMES)
    assert hostile.state.digest() == honest.state.digest()
    for got, expected in zip(hostile.records, honest.records, strict=True):
        assert got.aggregated and got.admitted == expected.admitted == NAMES[:3]
        assert got.silent == ("silent",)
        assert got.metrics["train_loss"] == expected.metrics["train_loss"]
        assert got.bytes_up == expected.bytes_up
        found = {(entry["site"], entry["reason"]) for entry in got.rejected}
        assert found == {
            *((name, reason.value) for name, (_, reason) in BAD.items()),
            (NAMES[TWICE - 1], "duplicate"),
            ("imposter", "unasked"),
        }
        assert len(got.rejected) == len(BAD) + 2
        # The only words of a site that enter the record are codes of its own refusal.
        details = {entry["site"]: entry["detail"] for entry in got.rejected if entry["detail"]}
        assert details == {"refusal": "no_data"}


def test_a_round_of_bad_replies_alone_leaves_the_adapter_as_it_was(tmp_path: Path) -> None:
    answers = [answer for answer, _ in BAD.values()]

    def bad_only(node: int, request: Request) -> RecordDict | Error:
        return (good_reply if request.kind == "evaluate" else answers[node - 1])(node, request)

    run = little_run(rounds=1, server_optimizer="adam", deadline_seconds=30.0)
    grid = InProcessGrid(little_app(bad_only), len(BAD))
    result = coordinate(grid, run, tmp_path)
    start = build_strategy(run.federation).initial_state(little_state(run))
    assert result.state.digest() == start.digest()
    assert not result.records[0].aggregated and len(result.records[0].rejected) == len(BAD)


def test_bad_answers_to_an_evaluation_are_set_aside_too(tmp_path: Path) -> None:
    def lying(node: int, request: Request) -> RecordDict | Error:
        if request.kind == "train" or node in GOOD:
            return good_reply(node, request)
        numbers = [
            {"num_examples": float("nan"), "accuracy": 1.0},
            {"num_examples": 1e9, "accuracy": float("inf")},
            {"num_examples": 1e9, "accuracy": 1.0, "revenue": 3.0},
            {"accuracy": 1.0},
        ][node - 4]
        return Reply(request.run_id, request.round, "ok", numbers).to_content()

    run = little_run(rounds=1)
    lied = coordinate(InProcessGrid(little_app(lying), 7), run, tmp_path / "lied").records[0]
    honest = coordinate(InProcessGrid(little_app(), 3), run, tmp_path / "honest").records[0]
    assert lied.site_metrics == honest.site_metrics
    assert lied.metrics["sites_accuracy"] == honest.metrics["sites_accuracy"]
