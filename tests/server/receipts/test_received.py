"""The coordinator's record of replies: every one that came, whatever became of it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict

from protocol.errors import FoedusError
from protocol.messages import CONFIG, METRICS, Reply, Request
from protocol.reasons import RefusalReason
from protocol.reply_facts import reply_facts
from protocol.secure_aggregation.wire import MASKED, Phase
from server.checkpoint import CheckpointStore
from server.receipts.received import Asked, ReceivedLog, ReceivedReply
from simulations.engines.in_process import InProcessGrid
from tests.little_secure_sites import (
    SecureGrid,
    SecureSites,
    coordinate_securely,
    little_secure_run,
)
from tests.little_sites import (
    UnreliableGrid,
    coordinate,
    good_reply,
    little_app,
    little_run,
    little_state,
    little_update,
)
from tests.small_runs import RUN_ID

ASKED = Asked(RUN_ID, 1, "train")


def replies(log: ReceivedLog) -> list[ReceivedReply]:
    return [reply for reply, _ in log.verify()]


def test_every_reply_of_a_run_is_on_record_with_what_was_made_of_it(tmp_path: Path) -> None:
    def respond(node: int, request: Request) -> RecordDict | Error:
        if node == 2 and request.kind == "train":
            return Reply(request.run_id, request.round, RefusalReason.POLICY).to_content()
        if node == 3 and request.kind == "train":
            update = {name: 1e6 * t for name, t in little_update(node, request).items()}
            numbers = {"num_examples": 1.0}
            return Reply(request.run_id, request.round, "ok", numbers, update).to_content()
        if node == 4 and request.kind == "train":
            return RecordDict({CONFIG: ConfigRecord({"status": "Acme pays"})})
        return good_reply(node, request)

    grid = UnreliableGrid(little_app(respond), 6, silent={6}, twice={5})
    log = ReceivedLog(tmp_path / "received.jsonl")
    result = coordinate(
        grid, little_run("ffa", rounds=1, deadline_seconds=0.3), tmp_path, received=log
    )
    found = replies(log)
    train = [(r.node_id, r.status, r.reason) for r in found if r.kind == "train"]
    assert sorted(train) == [
        (1, "ok", ""),
        (2, "policy", "refused_by_site"),
        (3, "ok", "norm_over_bound"),
        (4, "", "malformed"),
        (5, "ok", ""),
        (5, "ok", "duplicate"),
    ]
    assert {r.run_id for r in found} == {result.run_id} and {r.round for r in found} == {1}
    assert [r.node_id for r in found if r.digest == ""] == [4]
    admitted = [r.node_id for r in found if r.kind == "evaluate" and r.admitted]
    assert sorted(admitted) == [1, 2, 3, 4, 5]
    assert "Acme" not in log.path.read_text()


def test_the_digests_are_those_of_what_the_sites_sent(tmp_path: Path) -> None:
    sent: list[str] = []

    def respond(node: int, request: Request) -> RecordDict:
        content = good_reply(node, request)
        sent.append(reply_facts(content, request.kind).digest)
        return content

    log = ReceivedLog(tmp_path / "received.jsonl")
    coordinate(InProcessGrid(little_app(respond), 3), little_run(), tmp_path, received=log)
    assert sorted(sent) == sorted(r.digest for r in replies(log)) and len(sent) == 12


def test_every_phase_of_a_secure_round_is_on_record(tmp_path: Path) -> None:
    sites = SecureSites(tmp_path / "sites", 4)

    def alter(node: int, phase: Phase, content: RecordDict) -> RecordDict:
        if phase is Phase.UNMASK and node == 2:
            changed = RecordDict(dict(content))
            changed[MASKED] = MetricRecord()
            return changed
        return content

    log = ReceivedLog(tmp_path / "received.jsonl")
    run = little_secure_run("ffa", rounds=1, evaluate_every=0)
    grid = SecureGrid(sites, 4, alter=alter)
    coordinate_securely(grid, run, tmp_path, sites.roster, received=log)
    found = replies(log)
    for phase in Phase:
        of_phase = [r for r in found if r.kind == f"secure.{phase}"]
        assert len(of_phase) == 4
        assert all(r.admitted for r in of_phase if not (phase is Phase.UNMASK and r.node_id == 2))
    bad = [r for r in found if r.node_id == 2 and r.kind == "secure.unmask"]
    assert bad and not any(r.admitted or r.digest for r in bad)
    left = [r.digest for r in sites.site(1).receipts.verify() if r.kind.startswith("secure.")]
    assert left == [r.digest for r in found if r.node_id == 1 and r.kind.startswith("secure.")]


def message(content: RecordDict | None = None) -> Message:
    asked = Message(RecordDict(), 1, "train")
    if content is None:
        return Message(Error(code=3, reason="a text of the site"), reply_to=asked)
    return Message(content, reply_to=asked)


def test_a_failure_without_content_is_on_record_as_what_was_asked(tmp_path: Path) -> None:
    log = ReceivedLog(tmp_path / "received.jsonl")
    log.reply_came(Asked(RUN_ID, 4, "train", Phase.SHARE), 9, message(), "error_reply")
    (found,) = replies(log)
    assert (found.kind, found.run_id, found.round, found.node_id) == ("secure.share", RUN_ID, 4, 9)
    assert (found.reason, found.digest, found.num_bytes) == ("error_reply", "", 0)
    assert "a text of the site" not in log.path.read_text()


def test_no_reply_however_odd_ends_the_run_by_being_written_down(tmp_path: Path) -> None:
    log = ReceivedLog(tmp_path / "received.jsonl")
    good = good_reply(1, Request("train", RUN_ID, 1, little_run(), little_state(little_run())))
    config = dict(good.config_records[CONFIG])
    odd = [
        RecordDict(),
        RecordDict({CONFIG: ConfigRecord({**config, "round": 2**62}), METRICS: good[METRICS]}),
        RecordDict({CONFIG: ConfigRecord({**config, "run_id": ["a"]}), METRICS: good[METRICS]}),
        RecordDict({CONFIG: good[METRICS], METRICS: good[METRICS]}),
        RecordDict({"secure": ConfigRecord({"phase": b"share"})}),
        RecordDict({"secure": ConfigRecord({"phase": ["share"]})}),
    ]
    for content in odd:
        log.reply_came(ASKED, 1, message(content), "malformed")
    assert [r.digest for r in replies(log)] == [""] * len(odd)


def test_a_run_goes_on_in_the_same_log_after_a_crash(tmp_path: Path) -> None:
    log = ReceivedLog(tmp_path / "received.jsonl")
    run = little_run("ffa", rounds=2)
    coordinate(
        InProcessGrid(little_app(), 2), little_run("ffa", rounds=1), tmp_path / "a", received=log
    )
    with log.path.open("ab") as stream:
        stream.write(b'{"kind": "trai')
    coordinate(InProcessGrid(little_app(), 2), run, tmp_path / "b", received=ReceivedLog(log.path))
    assert len(replies(log)) == 2 * 2 + 2 * 4


def test_a_disk_that_refuses_ends_the_run_with_words_and_the_last_round_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = ReceivedLog(tmp_path / "received.jsonl")
    write = os.fsync

    def full(descriptor: int) -> None:
        if "received" in os.readlink(f"/proc/self/fd/{descriptor}") and len(replies(log)) > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    run = little_run("ffa", rounds=3)
    with pytest.raises(
        FoedusError, match=r"No space left on device\. The run stops after its last"
    ):
        coordinate(InProcessGrid(little_app(), 2), run, tmp_path, received=log)
    monkeypatch.undo()
    newest = CheckpointStore(tmp_path / "checkpoints", run).load_newest()
    assert newest is not None and newest.round == 1
    result = coordinate(InProcessGrid(little_app(), 2), run, tmp_path, resume=True, received=log)
    assert [record.round for record in result.records] == [1, 2, 3]
    assert len(replies(log)) >= 12


@pytest.mark.parametrize("line", [0, 3])
def test_an_altered_record_shows(tmp_path: Path, line: int) -> None:
    log = ReceivedLog(tmp_path / "received.jsonl")
    coordinate(InProcessGrid(little_app(), 3), little_run(rounds=1), tmp_path, received=log)
    lines = log.path.read_bytes().splitlines(keepends=True)
    lines[line] = lines[line].replace(b'"reason": ""', b'"reason": "not_finite"')
    log.path.write_bytes(b"".join(lines))
    with pytest.raises(FoedusError, match=f"line {line + 2} does not follow"):
        replies(log)


def test_a_line_of_another_form_is_named(tmp_path: Path) -> None:
    path = tmp_path / "received.jsonl"
    path.write_text('{"sequence": 0, "previous": "%s", "more": 1}\n' % ("0" * 64))
    with pytest.raises(FoedusError, match="line 1 is no record of a reply"):
        replies(ReceivedLog(path))
