"""Says "not now" where SuperLink says "broken", while its database is locked, full or out of reach.

SuperLink answers 500 then. After 500 a SuperNode ends or gives its message up, and a run fails;
after 503 both ask again until it works.
"""

from __future__ import annotations

import logging
import sqlite3
from contextvars import ContextVar

from sqlalchemy import Engine, event
from sqlalchemy.engine import ExceptionContext
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.lasting_problems import LastingProblems

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
_ABOUT = "SuperLink's database does not answer, so it is asked again"
# Of the request at hand, also in the threads that work for it.
_troubles: ContextVar[list[str]] = ContextVar("troubles")


class DatabaseTrouble:
    """An ASGI app around SuperLink's. It hears of every engine of this process."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._problems = LastingProblems(log)
        event.listen(Engine, "handle_error", _hear)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; 500 becomes 503 where the database was in trouble meanwhile."""
        troubles: list[str] = []

        async def send_or_postpone(message: Message) -> None:
            if message["type"] == "http.response.start":
                if message["status"] == 500 and troubles:
                    self._problems.tell(_ABOUT, troubles[0])
                    message = {**message, "status": 503}
                elif message["status"] == 200:
                    self._problems.over(_ABOUT)
            await send(message)

        before = _troubles.set(troubles)
        try:
            await self._app(scope, receive, send_or_postpone)
        finally:
            _troubles.reset(before)


def _hear(context: ExceptionContext) -> None:
    error, troubles = context.original_exception, _troubles.get(None)
    # The low byte is the kind of error, the rest says more of it.
    kind = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF
    if troubles is not None and kind in _PASSING:
        troubles.append(str(error))
