"""Admission: a bad reply is set aside with a reason, and never ends a round."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Error, Message, RecordDict

from protocol.errors import WireError
from protocol.messages import ExpectedReply, Reply
from protocol.reasons import RefusalReason, RejectionReason
from server.admission import Admission
from tests.small_runs import RUN_ID

LAYOUT = {"m.x.lora_B.weight": (7, 2), "m.head.weight": (3, 6)}
R = RejectionReason


def admission(bound: float = 10.0) -> Admission:
    return Admission(ExpectedReply("train", RUN_ID, 1, LAYOUT), frozenset({1, 2}), bound)


def content(fill: float = 0.1, **changes: Any) -> RecordDict:
    update = {name: np.full(shape, fill, np.float32) for name, shape in LAYOUT.items()}
    facts: dict[str, Any] = {"metrics": {"num_examples": 3.0}, "update": update}
    return Reply(**{"run_id": RUN_ID, "round": 1, **facts, **changes}).to_content()


def message(answer: RecordDict | Error, node: int = 1) -> Message:
    request = Message(RecordDict({}), node, "train")
    return Message(answer, reply_to=request)


def test_a_good_reply_is_admitted_once() -> None:
    gate = admission()
    reply = gate.admit(1, message(content()))
    assert reply is not None and reply.metrics == {"num_examples": 3.0}
    assert gate.admit(1, message(content())) is None
    assert gate.admitted == [1]
    assert [(s.node_id, s.reason) for s in gate.set_aside] == [(1, R.DUPLICATE)]


BAD: dict[str, tuple[Callable[[], RecordDict | Error], RejectionReason]] = {
    "an error": (lambda: Error(1, "Globex: no such file"), R.ERROR_REPLY),
    "a refusal": (lambda: Reply(RUN_ID, 1, RefusalReason.NO_DATA).to_content(), R.REFUSED_BY_SITE),
    "nothing": (lambda: RecordDict({}), R.MALFORMED),
    "another round": (lambda: content(round=2), R.WRONG_ROUND),
    "another run": (lambda: content(run_id="f" * 32), R.WRONG_RUN),
    "NaN": (lambda: content(float("nan")), R.NOT_FINITE),
    "infinity": (lambda: content(float("-inf")), R.NOT_FINITE),
    "a huge update": (lambda: content(1e30), R.NORM_OVER_BOUND),
    "a negative weight": (lambda: content(metrics={"num_examples": -1.0}), R.BAD_WEIGHT),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_reply_is_set_aside_with_its_reason(what: str) -> None:
    build, reason = BAD[what]
    gate = admission()
    assert gate.admit(1, message(build())) is None
    assert [(s.node_id, s.reason) for s in gate.set_aside] == [(1, reason)]
    assert gate.admitted == []


def test_a_site_may_answer_well_after_an_answer_that_was_set_aside() -> None:
    gate = admission()
    assert gate.admit(1, message(content(round=2))) is None
    assert gate.admit(1, message(content())) is not None


@pytest.mark.parametrize(("asked", "sender"), [(1, 2), (3, 3), (1, 3)])
def test_a_node_that_was_not_asked_is_not_heard(asked: int, sender: int) -> None:
    gate = admission()
    assert gate.admit(asked, message(content(), node=sender)) is None
    assert [s.reason for s in gate.set_aside] == [R.UNASKED]


def test_an_update_clipped_to_the_bound_in_float32_is_admitted() -> None:
    norm = float(np.linalg.norm(np.full(32, 0.1, np.float32)))
    assert admission(bound=norm * (1 - 1e-6)).admit(1, message(content())) is not None
    assert admission(bound=norm * (1 - 1e-3)).admit(1, message(content())) is None


def test_only_the_code_of_a_site_s_own_refusal_is_kept() -> None:
    gate = admission()
    gate.admit(1, message(Reply(RUN_ID, 1, RefusalReason.EGRESS).to_content()))
    gate.admit(2, message(Error(1, "Globex: no such file"), node=2))
    assert [s.detail for s in gate.set_aside] == ["egress", ""]
    assert "Globex" not in repr(gate.set_aside)


def test_a_reply_the_strategy_would_not_take_is_withdrawn() -> None:
    gate = admission()
    gate.admit(1, message(content()))
    gate.withdraw(1, WireError(R.BAD_WEIGHT, "no"))
    assert gate.admitted == []
    assert [s.reason for s in gate.set_aside] == [R.BAD_WEIGHT]
