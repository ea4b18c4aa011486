"""What a site remembers of a run's secure rounds, from one phase and one process to the next.

One file a run, for its owner's eyes alone (0600). It is on disk before the reply that it belongs to
leaves, so that whatever was sent is also remembered, and a site that was killed goes on or refuses.
A session's secrets are deleted as soon as the site has handed out its shares, or another begins; of
a run that is not asked for any more, a week later.
"""

from __future__ import annotations

import fcntl
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from protocol.errors import FoedusError
from protocol.files import remove_leftovers, write_atomically
from protocol.secure_aggregation.keys import Advertisement, SessionKeys
from protocol.secure_aggregation.shares import SharePair
from protocol.secure_aggregation.wire import SessionId, Terms

log = logging.getLogger("foedus.client")

FOLDER = "secure_aggregation"
# Kept beside the memory, see kept_update.
UPDATES = "update-*.safetensors"
_MEMORY = "memory.json"
_SCHEMA = 1
_OWNER_ONLY = 0o600
# A session ends with its round's deadline. Not at once: a site may serve several runs by turns.
_STALE_SECONDS = 7 * 86400.0


class Stage(StrEnum):
    """How far a session has come at this site; each is reached once."""

    ADVERTISED = "advertised"
    SHARED = "shared"
    MASKED = "masked"
    CONFIRMED = "confirmed"


@dataclass(frozen=True)
class SessionState:
    """One session at one site. received: shares by sender, this site's own among them; survivors:
    the list this site signed. Its text form shows no secret."""

    session: SessionId
    terms: Terms
    keys: SessionKeys = field(repr=False)
    stage: Stage = Stage.ADVERTISED
    advertisements: tuple[Advertisement, ...] = ()
    received: Mapping[str, SharePair] = field(default_factory=dict, repr=False)
    senders: tuple[str, ...] = ()
    survivors: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunMemory:
    """The newest round and attempt this site was asked to take part in.

    task_digest: what that round trains on, whatever the attempt. revealed: the one list of
    survivors whose sum this site has helped to open in that round; empty = none yet.
    """

    round: int = 0
    attempt: int = 0
    task_digest: str = ""
    revealed: tuple[str, ...] = ()
    current: SessionState | None = None


class MemoryStore:
    """The memory of one run in the site's state folder."""

    def __init__(self, state_folder: Path, run_id: str) -> None:
        self.folder = state_folder / FOLDER / run_id
        self._path = self.folder / _MEMORY

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes of this site out between a `load` and the `save` that follows it.

        Everything in the folder is written in here. Secrets and updates that a process killed while
        writing them has left under temporary names are deleted.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self.folder / "lock").open("a") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            for names in (_MEMORY, UPDATES):
                remove_leftovers(self.folder, names)
            yield

    def load(self) -> RunMemory:
        """What was saved last; empty before the first session of a run.

        Errors: FoedusError where the file is damaged: the site then takes no part in this run.
        """
        try:
            text = self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return RunMemory()
        try:
            return _from_json(json.loads(text))
        except (ValueError, KeyError, TypeError, FoedusError) as error:
            raise FoedusError(
                f"Expected this site's memory of a run in {self._path}, got a damaged file "
                f"({type(error).__name__}). Without it the site cannot tell what it has already "
                "sent, so it takes no part in this run; it can take part in a new one."
            ) from error

    def save(self, memory: RunMemory) -> None:
        """Write atomically. Errors: OSError; then the reply must not leave."""
        text = json.dumps(_to_json(memory), sort_keys=True)
        write_atomically(self._path, text.encode(), mode=_OWNER_ONLY)

    def exists(self) -> bool:
        """True once the run has asked this site for a secure session."""
        return self._path.exists()

    def is_stale(self, now: float) -> bool:
        """True where it was saved a week ago or earlier. Errors: OSError."""
        return now - self._path.stat().st_mtime >= _STALE_SECONDS


def forget_stale_sessions(state_folder: Path, now: float) -> None:
    """Delete the secrets of sessions, of whatever run, that were silent for a week.

    What else is remembered stays, so that such a run can go on with another attempt. now: Unix
    seconds. Errors: OSError.
    """
    for path in sorted((state_folder / FOLDER).glob(f"*/{_MEMORY}")):
        store = MemoryStore(state_folder, path.parent.name)
        if not store.is_stale(now):
            continue
        with store.locked():
            try:
                memory = store.load()
            except FoedusError as error:
                log.error("%s", error)
                continue
            if memory.current and store.is_stale(now):
                store.save(replace(memory, current=None))


def _to_json(memory: RunMemory) -> dict[str, Any]:
    current = None if memory.current is None else _session_to_json(memory.current)
    return {
        "schema": _SCHEMA,
        "round": memory.round,
        "attempt": memory.attempt,
        "task_digest": memory.task_digest,
        "revealed": list(memory.revealed),
        "current": current,
    }


def _from_json(values: Mapping[str, Any]) -> RunMemory:
    if values["schema"] != _SCHEMA:
        raise ValueError(f"schema {values['schema']}")
    current = values["current"]
    return RunMemory(
        int(values["round"]),
        int(values["attempt"]),
        str(values["task_digest"]),
        tuple(values["revealed"]),
        None if current is None else _session_from_json(current),
    )


def _session_to_json(state: SessionState) -> dict[str, Any]:
    return {
        "session": vars(state.session),
        "terms": vars(state.terms),
        "keys": state.keys.to_bytes().hex(),
        "stage": str(state.stage),
        "advertisements": [[a.member_id, a.to_bytes().hex()] for a in state.advertisements],
        "received": {
            sender: [pair.self_mask.hex(), pair.masking_key.hex()]
            for sender, pair in state.received.items()
        },
        "senders": list(state.senders),
        "survivors": list(state.survivors),
    }


def _session_from_json(values: Mapping[str, Any]) -> SessionState:
    return SessionState(
        SessionId(**values["session"]),
        Terms(**values["terms"]),
        SessionKeys.from_bytes(bytes.fromhex(values["keys"])),
        Stage(values["stage"]),
        tuple(
            Advertisement.from_bytes(member_id, bytes.fromhex(data))
            for member_id, data in values["advertisements"]
        ),
        {
            sender: SharePair(bytes.fromhex(self_mask), bytes.fromhex(masking_key))
            for sender, (self_mask, masking_key) in values["received"].items()
        },
        tuple(values["senders"]),
        tuple(values["survivors"]),
    )
