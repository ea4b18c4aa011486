"""The coordinator's member API on a port of its own, over the consortium's TLS."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from server.consortium.folder import ConsortiumFolder
from server.gateway.asgi import send_reply
from server.gateway.limits import Limits
from server.gateway.member_api import PULL_RECEIPTS, PUSH_RECEIPTS, MemberApi
from server.gateway.refused import Refused
from server.receipts.countersign import CountersigningDesk

_PATIENCE_SECONDS = 60.0


@contextlib.contextmanager
def member_api(
    folder: ConsortiumFolder, told: Callable[[dict[str, Any]], dict[str, Any]] = dict
) -> Iterator[None]:
    """Up at the address of consortium.yaml, with a desk of its own.

    told: what it makes of a page of countersigned receipts.
    """
    server = uvicorn.Server(
        uvicorn.Config(
            _app(folder, told),
            host="127.0.0.1",
            port=int(folder.settings().advertised_address.rpartition(":")[2]),
            ssl_certfile=str(folder.server_certificate),
            ssl_keyfile=str(folder.server_key),
            log_level="error",
        )
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    give_up = time.monotonic() + _PATIENCE_SECONDS
    while not server.started:
        assert thread.is_alive() and time.monotonic() < give_up
        time.sleep(0.02)
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(_PATIENCE_SECONDS)


def _app(folder: ConsortiumFolder, told: Callable[[dict[str, Any]], dict[str, Any]]) -> ASGIApp:
    desk = CountersigningDesk.of(folder)
    handlers = {PUSH_RECEIPTS: desk.push, PULL_RECEIPTS: lambda *asked: told(desk.pull(*asked))}
    api = MemberApi(folder.chain, handlers, Limits.of(folder.settings()))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            asked = (scope["method"], scope["path"])
            _, reply = await api.answer(asked, scope, receive, time.time())
        except Refused as refused:
            reply = refused.reply()
        await send_reply(send, reply)

    return app
