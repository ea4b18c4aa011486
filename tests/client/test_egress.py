"""The egress guard: what was not agreed does not leave, and what leaves has a receipt."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.egress import EgressGuard, NoReceipt
from client.policy import PolicySettings
from client.receipts import ReceiptLog
from protocol.adapter import FloatArray
from protocol.messages import ARRAYS, CONFIG, METRICS, ExpectedReply, Reply
from protocol.reasons import RefusalReason
from protocol.reply_facts import reply_facts
from tests.small_runs import RUN_ID

LAYOUT = {"m.x.lora_B.weight": (7, 2), "m.head.weight": (3, 6)}
EXPECTED = ExpectedReply("train", RUN_ID, 1, LAYOUT)
SECRET = "Acme pays Globex"


def update(**changes: Any) -> dict[str, FloatArray]:
    return {name: np.full(shape, 0.1, np.float32) for name, shape in LAYOUT.items()} | changes


def reply(**changes: Any) -> Reply:
    facts: dict[str, Any] = {"metrics": {"num_examples": 3.0}, "update": update()}
    return Reply(**{"run_id": RUN_ID, "round": 1, **facts, **changes})


@pytest.fixture
def receipts(tmp_path: Path) -> ReceiptLog:
    return ReceiptLog(tmp_path / "receipts.jsonl")


def test_an_agreed_reply_leaves_as_it_is_with_a_receipt(receipts: ReceiptLog) -> None:
    content = EgressGuard(EXPECTED, 1.0, PolicySettings()).release(reply(), receipts)
    parsed = EXPECTED.parse(content)
    np.testing.assert_array_equal(parsed.update["m.head.weight"], update()["m.head.weight"])
    (receipt,) = receipts.verify()
    assert (receipt.kind, receipt.run_id, receipt.round, receipt.status) == (
        "train",
        RUN_ID,
        1,
        "ok",
    )
    facts = reply_facts(content, "train")
    assert receipt.digest == facts.digest
    assert receipt.num_bytes == facts.num_bytes > 4 * 32


BAD: dict[str, dict[str, Any]] = {
    "an unknown tensor": {"update": update(**{"m.embeddings": np.zeros(4, np.float32)})},
    "a missing tensor": {"update": {"m.head.weight": np.zeros((3, 6), np.float32)}},
    "a wrong shape": {"update": update(**{"m.head.weight": np.zeros((6, 3), np.float32)})},
    "a wrong dtype": {"update": update(**{"m.head.weight": np.zeros((3, 6), np.complex64)})},
    "NaN": {"update": update(**{"m.head.weight": np.full((3, 6), np.nan, np.float32)})},
    "infinity": {"update": update(**{"m.head.weight": np.full((3, 6), np.inf, np.float32)})},
    "a norm over the bound": {"update": update(**{"m.head.weight": np.ones((3, 6), np.float32)})},
    "an unknown metric": {"metrics": {"num_examples": 3.0, "num_clients": 2.0}},
    "a text among the metrics": {"metrics": {"num_examples": 3.0, "train_loss": SECRET}},
    "a list among the metrics": {"metrics": {"num_examples": [1.0, 2.0]}},
    "no number of examples": {"metrics": {"train_loss": 1.0}},
    "NaN among the metrics": {"metrics": {"num_examples": 3.0, "train_loss": float("nan")}},
    "a metric named after a client": {"metrics": {"num_examples": 3.0, SECRET: 1.0}},
    "another round": {"round": 2},
    "another run": {"run_id": "f" * 32},
    "an invented status": {"status": SECRET},
    "an update beside a refusal": {"status": str(RefusalReason.NO_DATA)},
    "numbers beside a refusal": {"status": str(RefusalReason.NO_DATA), "update": {}},
}


@pytest.mark.parametrize("what", BAD)
def test_what_was_not_agreed_becomes_a_refusal_code_and_nothing_else(
    receipts: ReceiptLog, what: str
) -> None:
    content = EgressGuard(EXPECTED, 2.0, PolicySettings()).release(reply(**BAD[what]), receipts)
    assert set(content) == {CONFIG, METRICS}
    assert dict(content[METRICS]) == {}
    config = content.config_records[CONFIG]
    assert config["status"] == RefusalReason.EGRESS
    assert (config["run_id"], config["round"]) == (RUN_ID, 1)
    assert SECRET not in repr(content)
    (receipt,) = receipts.verify()
    assert receipt.status == "egress" and SECRET not in receipts.path.read_text()


def test_the_bound_is_met_by_an_update_exactly_on_it(receipts: ReceiptLog) -> None:
    on_bound = {name: np.zeros(shape, np.float32) for name, shape in LAYOUT.items()}
    on_bound["m.head.weight"][0, :2] = [3.0, 4.0]
    guard = EgressGuard(EXPECTED, 5.0, PolicySettings())
    assert ARRAYS in guard.release(reply(update=on_bound), receipts)
    on_bound["m.head.weight"][0, 1] = np.nextafter(np.float32(4), np.float32(5))
    assert ARRAYS not in guard.release(reply(update=on_bound), receipts)


def test_an_honest_refusal_leaves_with_its_own_code(receipts: ReceiptLog) -> None:
    refusal = Reply(RUN_ID, 1, RefusalReason.NO_DATA)
    content = EgressGuard(EXPECTED, 1.0, PolicySettings()).release(refusal, receipts)
    assert content.config_records[CONFIG]["status"] == "no_data"
    assert [receipt.status for receipt in receipts.verify()] == ["no_data"]


def test_nothing_leaves_where_no_receipt_can_be_written(
    receipts: ReceiptLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(_: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(NoReceipt):
        EgressGuard(EXPECTED, 1.0, PolicySettings()).release(reply(), receipts)


def test_nothing_leaves_after_a_damaged_receipt_and_the_site_is_told_where(
    receipts: ReceiptLog, caplog: pytest.LogCaptureFixture
) -> None:
    guard = EgressGuard(EXPECTED, 1.0, PolicySettings())
    guard.release(reply(), receipts)
    with receipts.path.open("ab") as stream:
        stream.write(b"garbage\n")
    with pytest.raises(NoReceipt):
        guard.release(Reply(RUN_ID, 1, RefusalReason.NO_DATA), receipts)
    assert f"last line of {receipts.path}" in caplog.text and "restore the file" in caplog.text


def test_a_number_that_the_site_s_policy_keeps_is_left_out_and_the_rest_goes(
    receipts: ReceiptLog,
) -> None:
    policy = PolicySettings(allowed_metrics=("num_examples",))
    numbers = {"num_examples": 3.0, "train_loss": 0.5, "train_seconds": 9.0}
    content = EgressGuard(EXPECTED, 1.0, policy).release(reply(metrics=numbers), receipts)
    assert dict(content.metric_records[METRICS]) == {"num_examples": 3.0} and ARRAYS in content


def test_a_receipt_names_where_the_privacy_ledger_stood(receipts: ReceiptLog) -> None:
    EgressGuard(EXPECTED, 1.0, PolicySettings()).release(reply(), receipts)
    EgressGuard(EXPECTED, 1.0, PolicySettings()).release(reply(), receipts, lambda: "7:ab")
    assert [receipt.ledger for receipt in receipts.verify()] == ["", "7:ab"]
