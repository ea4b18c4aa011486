"""Which replies have wholly arrived: of the others the run is not told.

Flower hands a reply to the run as soon as it is announced, before its objects come. Its Grid then
waits in that one call for as long as the upload lasts, or 180 s where it was cut off. Meanwhile no
other site is heard, and the announcement is deleted, so nobody can tell whose upload it is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass

from flwr.supercore.constant import OBJECT_PUSH_SESSION_TTL_SECONDS

from server.gateway.whole_replies import WholeReplies


@dataclass
class _Upload:
    answers: str
    missing: set[str]
    progress_at: float


class Uploads:
    """Lives in one event loop.

    `settled` is held while a reply is announced and while the run asks for replies, so that no
    announcement is stored between this list's answer and Flower's.
    """

    def __init__(self, whole: WholeReplies) -> None:
        self.settled = asyncio.Lock()
        self._whole = whole
        self._by_session: dict[str, _Upload] = {}
        self._session_of: dict[str, str] = {}

    def begun(self, session_id: str, answers: str, missing: Iterable[str]) -> None:
        """A node announced its reply to the message `answers`; `missing` is still to be pushed.

        One announced anew, after a connection that broke, takes the old one's place; but where
        Flower asks for nothing because it has the announcement already, the old one goes on.
        """
        self._forget_expired()
        upload = _Upload(answers, set(missing), time.monotonic())
        if not upload.missing:
            self._whole.came(answers)
            return
        self._by_session.pop(self._session_of.get(answers, ""), None)
        self._by_session[session_id] = upload
        self._session_of[answers] = session_id

    def object_stored(self, session_id: str, object_id: str) -> bool:
        """One of the objects came; True where it was the last. The run is told of the reply once
        `over` is called."""
        upload = self._by_session.get(session_id)
        if upload is None:
            return False
        upload.missing.discard(object_id)
        upload.progress_at = time.monotonic()
        return not upload.missing

    def over(self, session_id: str) -> None:
        """It has come, or was given up: it is hidden from the run no more."""
        if session_id in self._by_session:
            self._forget(session_id)

    def unfinished(self, message_ids: Iterable[str]) -> set[str]:
        """Those of the run's messages whose replies are on their way.

        An upload that Flower has given up is not among them: the run may hear of its failure.
        """
        self._forget_expired()
        return {message_id for message_id in message_ids if message_id in self._session_of}

    def _forget_expired(self) -> None:
        oldest = time.monotonic() - OBJECT_PUSH_SESSION_TTL_SECONDS
        for session_id in [s for s, u in self._by_session.items() if u.progress_at < oldest]:
            self._forget(session_id)

    def _forget(self, session_id: str) -> None:
        answers = self._by_session.pop(session_id).answers
        del self._session_of[answers]
        self._whole.came(answers)
