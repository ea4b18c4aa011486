"""What both sides write down of a reply: the same of the same content, and of no other."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

from protocol.adapter import FloatArray
from protocol.errors import WireError
from protocol.flat_array import FLAT
from protocol.messages import ARRAYS, CONFIG, METRICS, Reply
from protocol.reasons import RefusalReason, RejectionReason
from protocol.reply_facts import reply_facts
from protocol.secure_aggregation.messages import MaskedInputReply
from protocol.secure_aggregation.wire import MASKED, SECURE, Phase, SessionId, refusal_content
from tests.small_runs import RUN_ID

LAYOUT = {"m.x.lora_B.weight": (7, 2), "m.head.weight": (3, 6)}
SESSION = SessionId(RUN_ID, 2, 1)


def update(**changes: Any) -> dict[str, FloatArray]:
    return {name: np.full(shape, 0.1, np.float32) for name, shape in LAYOUT.items()} | changes


def reply(**changes: Any) -> RecordDict:
    facts: dict[str, Any] = {"metrics": {"num_examples": 3.0}, "update": update()}
    return Reply(**{"run_id": RUN_ID, "round": 1, **facts, **changes}).to_content()


def masked(**changes: Any) -> RecordDict:
    return MaskedInputReply(
        **{"session": SESSION, "packed": b"\1\2\3\4", "train_seconds": 2.0, **changes}
    ).to_content()


def test_the_facts_are_what_the_reply_says() -> None:
    facts = reply_facts(reply(), "train")
    assert (facts.kind, facts.run_id, facts.round, facts.status) == ("train", RUN_ID, 1, "ok")
    assert facts.num_bytes > 4 * 32
    facts = reply_facts(masked(), "train")
    assert (facts.kind, facts.round, facts.status) == ("secure.masked_input", 2, "ok")
    refusal = reply_facts(refusal_content(Phase.SHARE, SESSION, "policy"), "train")
    assert (refusal.kind, refusal.status) == ("secure.share", "policy")


def test_the_digest_covers_every_number_and_every_byte_that_leaves() -> None:
    digest = reply_facts(reply(), "train").digest
    assert reply_facts(reply(), "train").digest == digest
    small = np.full((3, 6), np.nextafter(np.float32(0.1), np.float32(1)))
    others = [
        reply(update=update(**{"m.head.weight": small})),
        reply(metrics={"num_examples": 4.0}),
        reply(metrics={"num_examples": 3.0, "train_loss": 0.0}),
        reply(round=2),
        reply(run_id="f" * 32),
        reply(status="policy"),
    ]
    digests = {reply_facts(other, "train").digest for other in others}
    assert len(digests) == len(others) and digest not in digests
    others = [masked(), masked(packed=b"\1\2\3\5"), masked(train_seconds=2.5)]
    assert len({reply_facts(other, "train").digest for other in others}) == 3


def test_the_digest_can_be_recomputed_by_hand_from_what_was_sent() -> None:
    content = reply()
    lines = [f"config.{k}={v!r}\n" for k, v in sorted(content.config_records[CONFIG].items())]
    lines += [f"metrics.{k}={v!r}\n" for k, v in sorted(content.metric_records[METRICS].items())]
    data = content.array_records[ARRAYS][FLAT].data
    by_hand = hashlib.sha256("".join(lines).encode() + data).hexdigest()
    assert reply_facts(content, "train").digest == by_hand


@pytest.mark.parametrize(
    "content",
    [
        reply(),
        reply(status=RefusalReason.POLICY, update={}),
        reply(metrics={"num_examples": np.float64(3.0)}),
        masked(),
        refusal_content(Phase.SHARE, SESSION, RefusalReason.POLICY),
    ],
)
def test_both_ends_of_the_wire_find_the_same_facts(content: RecordDict) -> None:
    arrived = recorddict_from_proto(recorddict_to_proto(content))
    assert reply_facts(arrived, "train") == reply_facts(content, "train")


def with_config(**changes: Any) -> RecordDict:
    content = reply()
    content[CONFIG] = ConfigRecord({**dict(content.config_records[CONFIG]), **changes})
    return content


def without(key: str) -> RecordDict:
    content = reply()
    del content[key]
    return content


MALFORMED = {
    "nothing": RecordDict(),
    "no config": without(CONFIG),
    "no metrics": without(METRICS),
    "metrics of another kind": RecordDict({CONFIG: reply()[CONFIG], METRICS: ConfigRecord()}),
    "a run of another form": with_config(run_id="A" * 32),
    "a run that is a number": with_config(run_id=7),
    "a round that is a text": with_config(round="1"),
    "a round below 0": with_config(round=-1),
    "an invented status": with_config(status="Acme pays Globex"),
    "no array of ours": RecordDict(
        {**reply(), ARRAYS: ArrayRecord({"other": Array(np.zeros(2, np.float32))})}
    ),
    "an unknown phase": RecordDict({SECURE: ConfigRecord({"phase": "gossip"})}),
    "numbers instead of a header": RecordDict({SECURE: MetricRecord({"phase": 1.0})}),
    "a masked input of another form": RecordDict({**masked(), MASKED: MetricRecord()}),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_what_no_site_of_ours_would_send_has_no_facts(what: str) -> None:
    with pytest.raises(WireError) as refused:
        reply_facts(MALFORMED[what], "train")
    assert refused.value.code == RejectionReason.MALFORMED
