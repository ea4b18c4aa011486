"""Says "not now" where SuperLink says "broken", while its database is locked, full or out of reach.

SuperLink answers 500 then. After 500 a SuperNode ends or gives its message up, and a run fails;
after 503 both ask again until it works.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from contextvars import ContextVar

from sqlalchemy import Engine, event
from sqlalchemy.engine import ExceptionContext
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("foedus.gateway")

# What passes, or what people see to; all else would fail again.
_PASSING = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CANTOPEN,
    }
)
# Questions that only read are answered meanwhile, so that no single answer shows that it is over.
_SILENT_SECONDS = 60.0
# Of the request at hand, also in the threads that work for it.
_troubles: ContextVar[list[str]] = ContextVar("troubles")


class DatabaseTrouble:
    """An ASGI app around SuperLink's. It hears of every engine of this process."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._silent_until = 0.0
        event.listen(Engine, "handle_error", _hear)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; 500 becomes 503 where the database was in trouble meanwhile."""
        troubles: list[str] = []

        async def send_or_postpone(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 500 and troubles:
                self._tell(troubles[0])
                message = {**message, "status": 503}
            await send(message)

        before = _troubles.set(troubles)
        try:
            await self._app(scope, receive, send_or_postpone)
        finally:
            _troubles.reset(before)

    def _tell(self, trouble: str) -> None:
        now = time.monotonic()
        if now >= self._silent_until:
            self._silent_until = now + _SILENT_SECONDS
            log.error("SuperLink's database does not answer: %s. Who asked asks again.", trouble)


def _hear(context: ExceptionContext) -> None:
    error, troubles = context.original_exception, _troubles.get(None)
    # The low byte is the kind of error, the rest says more of it.
    kind = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF
    if troubles is not None and kind in _PASSING:
        troubles.append(str(error))
