"""Whatever is altered, replayed or swapped between a site and the coordinator is refused."""

from __future__ import annotations

import copy
import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from client.secure_aggregation.memory import MemoryStore
from protocol.errors import Refusal, WireError
from protocol.messages import ARRAYS, CONFIG, Request
from protocol.secure_aggregation.messages import parse_reply
from protocol.secure_aggregation.wire import MASKED, SECURE, Phase
from server.secure_aggregation.gate import PhaseGate
from tests.secure_conversations import Conversation, status_of
from tests.small_runs import RUN_ID


@pytest.fixture(autouse=True)
def _no_flushing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Thousands of answers: none has to survive a power cut, or to be explained."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    caplog.set_level(logging.CRITICAL, logger="foedus.client")


def altered_values(value: Any) -> Iterator[Any]:
    """A value with each of its bytes changed in turn; and a longer and a shorter one."""
    if isinstance(value, bytes):
        for index in range(len(value)):
            yield value[:index] + bytes([value[index] ^ (1 << index % 8)]) + value[index + 1 :]
        yield value + b"\0"
        yield value[:-1] if value else b"\1"
    elif isinstance(value, str):
        for index, character in enumerate(value):
            yield value[:index] + chr(ord(character) ^ 1) + value[index + 1 :]
        yield value + "0"
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value + 1, -value - 1, value + 2**40)
    elif isinstance(value, float):
        yield from (math.nextafter(value, math.inf), -value - 1.0, math.nan)
    else:
        yield [*value, value[0]] if value else ["x"]


def altered_records(record: ConfigRecord) -> Iterator[ConfigRecord]:
    for name, value in record.items():
        for other in altered_values(value):
            yield ConfigRecord({**dict(record), name: other})
        yield ConfigRecord({n: v for n, v in record.items() if n != name})
    yield ConfigRecord({**dict(record), "note": "of a document"})


def altered_arrays(record: ArrayRecord) -> Iterator[ArrayRecord]:
    for name, array in record.items():
        for data in altered_values(array.data):
            yield ArrayRecord({name: Array(array.dtype, array.shape, array.stype, data)})
        for dtype, shape, stype in (
            ("int8", array.shape, array.stype),
            (array.dtype, (1, *array.shape), array.stype),
            (array.dtype, array.shape, array.stype + "x"),
        ):
            yield ArrayRecord({name: Array(dtype, shape, stype, array.data)})


def altered_record(record: Any) -> Iterator[Any]:
    if isinstance(record, ConfigRecord):
        return altered_records(record)
    return altered_arrays(record)


def altered(content: RecordDict) -> Iterator[RecordDict]:
    """The message with each byte of each record changed in turn."""
    for key, record in content.items():
        rest = {k: v for k, v in content.items() if k != key}
        for other in altered_record(record):
            yield RecordDict({**rest, key: other})
        yield RecordDict(rest)


class Coordinator:
    """The coordinator's real gate, in front of a session that takes what it is given."""

    def __init__(self, talk: Conversation, phase: Phase) -> None:
        self._talk, self._phase = talk, phase

    def verdict(self, sent: RecordDict, reply: RecordDict) -> str:
        """ "ok" where the reply to `sent` is taken, else why not. Nothing counts in the session."""
        talk = self._talk
        session = copy.copy(talk.session)
        for name in ("_advertised", "_boxes", "_masked", "_confirmations", "_shares"):
            setattr(session, name, copy.copy(getattr(session, name)))
        session._total = None
        size = session.num_masked_bytes
        gate = PhaseGate(
            session.session, self._phase, {1: sent}, talk.sites.roster, talk.sites.members, size
        )
        kind = "train" if self._phase is Phase.MASKED_INPUT else "query"
        message = Message(reply, reply_to=Message(sent, 1, kind))

        def take(node: int, parsed: Any) -> None:
            genuine, talk.session = talk.session, session
            try:
                talk.take(self._phase, node, reply)
            finally:
                talk.session = genuine

        try:
            gate.admit(1, message, take)
        except WireError as error:
            return str(error.code)
        return "ok"


def at(tmp_path: Path, phase: Phase) -> tuple[Conversation, RecordDict, MemoryStore, Any]:
    """(a session before this phase, what site 1 is asked, its memory now)."""
    talk = Conversation(tmp_path).until(phase)
    store = MemoryStore(talk.sites.site(1).state_folder, RUN_ID)
    return talk, talk.content(phase, 1), store, store.load()


def same_task(one: RecordDict, other: RecordDict) -> bool:
    """Whether two masked-input requests mean the same, though their bytes differ."""
    try:
        parsed = [
            Request.from_content(RecordDict({k: c[k] for k in (ARRAYS, CONFIG)}), "train")
            for c in (one, other)
        ]
    except (WireError, Refusal, KeyError):
        return False
    first, second = parsed
    same_state = first.state.digest() == second.state.digest()
    return same_state and first.settings == second.settings and one[SECURE] == other[SECURE]


@pytest.mark.parametrize(
    "phase",
    [pytest.param(p, marks=pytest.mark.slow) if p is Phase.MASKED_INPUT else p for p in Phase],
)
def test_a_request_of_which_any_byte_was_altered_gets_no_answer_that_counts(
    tmp_path: Path, phase: Phase
) -> None:
    """The site refuses it, or the coordinator sees from the signature that another was answered."""
    talk, sent, store, memory = at(tmp_path, phase)
    coordinator = Coordinator(talk, phase)
    genuine = talk.ask(phase, 1, sent)
    assert coordinator.verdict(sent, genuine) == "ok"
    tried = 0
    for other in altered(sent):
        store.save(memory)
        reply = talk.ask(phase, 1, other)
        verdict = coordinator.verdict(sent, reply)
        assert verdict != "ok" or same_task(sent, other)
        # A refusal costs the site nothing: it can still answer the genuine request.
        if status_of(reply) != "ok" and phase is not Phase.ADVERTISE:
            assert store.load() == memory
        tried += 1
    assert tried > 100


@pytest.mark.parametrize("phase", Phase)
def test_a_reply_of_which_any_byte_was_altered_is_set_aside(tmp_path: Path, phase: Phase) -> None:
    talk, sent, _, _ = at(tmp_path, phase)
    coordinator = Coordinator(talk, phase)
    reply = talk.ask(phase, 1, sent)
    assert coordinator.verdict(sent, reply) == "ok"
    tried = 0
    for other in altered(reply):
        assert coordinator.verdict(sent, other) != "ok"
        tried += 1
    assert tried > 150


@pytest.mark.parametrize("phase", Phase)
def test_a_reply_to_another_session_or_of_another_site_is_set_aside(
    tmp_path: Path, phase: Phase
) -> None:
    replayed: list[RecordDict] = []
    talk = Conversation(tmp_path / "one")
    for attempt, round_ in ((1, 1), (2, 1), (1, 2)):
        talk.new_session(attempt, round_)
        talk.until(phase)
        replayed.append(talk.ask(phase, 1))
    of_another_site = talk.ask(phase, 2)
    talk.new_session(2, 2)
    talk.until(phase)
    sent = talk.content(phase, 1)
    coordinator = Coordinator(talk, phase)
    for old in replayed:
        assert coordinator.verdict(sent, old) in {"wrong_phase", "wrong_round"}
    assert coordinator.verdict(sent, of_another_site) != "ok"
    if phase is not Phase.ADVERTISE:
        other = talk.ask(phase, 2)
        assert coordinator.verdict(sent, other) in {"bad_signature", "malformed"}


def test_a_masked_input_is_not_taken_in_another_s_name(tmp_path: Path) -> None:
    """Nor can one site's share, signature or vector be handed in by another."""
    for phase in list(Phase)[1:]:
        talk, sent, _, _ = at(tmp_path / phase, phase)
        reply = talk.ask(phase, 2)
        assert Coordinator(talk, phase).verdict(sent, reply) != "ok"


def test_a_masked_input_tells_nothing_of_its_update_but_its_length(tmp_path: Path) -> None:
    """Two sites with equal updates, or one with zeros, send vectors without resemblance."""
    talk = Conversation(tmp_path).until(Phase.MASKED_INPUT)
    talk.sites.trainers[1].scale = 0.0
    vectors = []
    for node in (1, 2, 3):
        reply = talk.ask(Phase.MASKED_INPUT, node)
        data = reply.array_records[MASKED][MASKED].data
        vectors.append(np.frombuffer(data, dtype=np.uint32))
    assert len({v.size for v in vectors}) == 1
    for vector in vectors:
        # Uniform over the ring: about half of the bits set, and no value seen twice.
        bits = np.unpackbits(vector.view(np.uint8))
        assert abs(bits.mean() - 0.5) < 5 * 0.5 / math.sqrt(bits.size)
        assert len(set(vector.tolist())) == vector.size
    assert parse_reply(reply, Phase.MASKED_INPUT, talk.session.session, len(data))
