"""A coordinator's member API over TLS on loopback, with a roster that a test can change at will."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import uvicorn
from starlette.types import Receive, Scope, Send

from protocol.consortium.chain import SignedRoster
from protocol.consortium.identity import Identity
from protocol.consortium.invitation import Invitation
from server.consortium.certificates import (
    LOOPBACK_NAMES,
    Certified,
    make_authority,
    make_server_certificate,
)
from server.consortium.settings import ConsortiumSettings
from server.gateway.asgi import send_reply
from server.gateway.limits import Limits
from server.gateway.member_api import MemberApi
from server.gateway.refused import Refused
from tests.protocol.consortium.leagues import COORDINATOR, LEAGUE

STARTED = datetime.datetime.now(datetime.UTC)
AUTHORITY = make_authority(LEAGUE, STARTED)


class Coordinator:
    """address: host:port it answers on. chain: what it shows; a test replaces it. body: what it
    sends instead of every answer. meanwhile: done once while an answer is on its way."""

    def __init__(self, chain: Sequence[SignedRoster]) -> None:
        self.chain = chain
        self.address = ""
        self.body = b""
        self.meanwhile: Callable[[], object] | None = None
        limits = Limits.of(ConsortiumSettings(LEAGUE, "localhost:1"))
        self._api = MemberApi(lambda: self.chain, {}, limits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = (scope["method"], scope["path"])
        try:
            _, reply = await self._api.answer(asked, scope, receive, time.time())
            if self.body:
                reply = replace(reply, body=self.body)
        except Refused as refused:
            reply = refused.reply()
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile:
            await asyncio.to_thread(meanwhile)
        await send_reply(send, reply)

    def invitation(
        self, coordinator: Identity = COORDINATOR, authority: Certified = AUTHORITY
    ) -> Invitation:
        pem = authority.certificate_pem.decode()
        return Invitation(LEAGUE, self.address, coordinator.public_key, pem).signed(coordinator)


@contextlib.contextmanager
def coordinating(folder: Path, chain: Sequence[SignedRoster]) -> Iterator[Coordinator]:
    """Serve until the block ends. folder: for its certificate and key."""
    coordinator = Coordinator(chain)
    certified = make_server_certificate(AUTHORITY, LOOPBACK_NAMES, 30, STARTED)
    key, certificate = folder / "server.key", folder / "server.pem"
    key.write_bytes(certified.key_pem())
    certificate.write_bytes(certified.certificate_pem)
    config = uvicorn.Config(
        coordinator,
        "127.0.0.1",
        0,
        lifespan="off",
        log_level="error",
        ssl_keyfile=str(key),
        ssl_certfile=str(certificate),
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    coordinator.address = f"127.0.0.1:{port}"
    try:
        yield coordinator
    finally:
        server.should_exit = True
        thread.join(timeout=60)
