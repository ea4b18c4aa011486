"""Hosts SuperLink's app on its listeners: all of it on loopback, the guard's part for firms."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import os
import signal
import socket
import ssl
import stat
import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp
from uvicorn.config import Config
from uvicorn.server import Server

from protocol.errors import FoedusError
from server.consortium.folder import ConsortiumFolder
from server.consortium.settings import ConsortiumSettings
from server.gateway.limits import Limits
from server.gateway.listener import MAX_HEADER_BYTES, FirmsServer
from server.gateway.observing import Observer
from server.gateway.state_file import GatewayState
from server.gateway.superlink import LOOPBACK

log = logging.getLogger("foedus.gateway")

# Responses in flight get that long when the coordinator stops.
GRACE_SECONDS = 2


class LoopbackServer(Server):
    """uvicorn's server, leaving signals to whoever runs several of them."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing is captured."""
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Idle connections are dropped: waiting for each to take leave of TLS takes seconds."""
        for connection in list(self.server_state.connections):
            cycle = getattr(connection, "cycle", None)
            if cycle is None or cycle.response_complete:
                connection.transport.abort()
        await super().shutdown(sockets)


@dataclass(frozen=True)
class Sockets:
    """Bound and listening, so that a port in use is found before anything starts."""

    control: socket.socket
    firms: socket.socket
    metrics: socket.socket

    @classmethod
    def bind(cls, settings: ConsortiumSettings) -> Sockets:
        """Errors: FoedusError naming the address that is taken."""
        return cls(
            _bind(LOOPBACK, settings.control_port, "control_port"),
            _bind(settings.public_host, settings.public_port, "public_port"),
            _bind(LOOPBACK, settings.metrics_port, "metrics_port"),
        )


@dataclass(frozen=True)
class Apps:
    """What answers on each listener."""

    control: ASGIApp
    firms: ASGIApp
    metrics: ASGIApp


class Hosting:
    """The servers of one process in one event loop. passphrase: of the TLS key."""

    def __init__(
        self,
        folder: ConsortiumFolder,
        passphrase: bytes | None,
        sockets: Sockets,
        apps: Apps,
        limits: Limits,
        observer: Observer,
    ) -> None:
        tls: dict[str, Any] = {
            "ssl_certfile": str(folder.server_certificate),
            "ssl_keyfile": str(folder.server_key),
            "ssl_keyfile_password": passphrase,
        }
        quiet: dict[str, Any] = {
            "log_config": None,
            "access_log": False,
            "timeout_graceful_shutdown": GRACE_SECONDS,
        }
        self._folder = folder
        # Never None: OpenSSL would ask whoever sits at the terminal.
        self._passphrase = passphrase or b""
        self._sockets = sockets
        self._control = LoopbackServer(Config(apps.control, lifespan="on", **tls, **quiet))
        self._metrics = LoopbackServer(Config(apps.metrics, lifespan="off", **quiet))
        self.firms = FirmsServer(
            Config(
                apps.firms,
                lifespan="off",
                http="h11",
                ws="none",
                server_header=False,
                timeout_keep_alive=int(limits.keep_alive_seconds),
                h11_max_incomplete_event_size=MAX_HEADER_BYTES,
                **tls,
                **quiet,
            ),
            limits,
            observer,
        )

    async def run(
        self,
        prepare: Callable[[], None],
        upkeep: Iterable[Coroutine[Any, Any, None]],
        firms_open_at: datetime.datetime,
        release_polls: Callable[[], None],
    ) -> None:
        """Serve until SIGTERM, SIGINT, or the end of standard input where that is a pipe.

        prepare: called in a thread once SuperLink answers on loopback; upkeep: begun after it.
        firms_open_at: no firm is let in before. release_polls: called first when it stops.
        Errors: FoedusError where SuperLink does not start.
        """
        stop = asyncio.Event()
        _stop_when_told(stop)
        control = asyncio.create_task(self._control.serve([self._sockets.control]))
        metrics = asyncio.create_task(self._metrics.serve([self._sockets.metrics]))
        tasks = [control, metrics]
        try:
            await _until_started(self._control, control)
            await asyncio.to_thread(prepare)
            tasks += [asyncio.create_task(work) for work in upkeep]
            wait_seconds = (firms_open_at - datetime.datetime.now(datetime.UTC)).total_seconds()
            await asyncio.sleep(max(0.0, wait_seconds))
            firms = asyncio.create_task(self.firms.serve([self._sockets.firms]))
            await _until_started(self.firms, firms)
            state = self._state()
            state.write(self._folder.gateway_state)
            log.info("Up: firms reach %s, we %s.", state.public_address, state.control_address)
            stopping = asyncio.create_task(stop.wait())
            await asyncio.wait((stopping, *tasks, firms), return_when=asyncio.FIRST_COMPLETED)
            release_polls()
            self.firms.should_exit = True
            await firms
        finally:
            self._control.should_exit = self._metrics.should_exit = True
            await asyncio.gather(control, metrics)
            for task in tasks:
                task.cancel()
        self._folder.gateway_state.unlink(missing_ok=True)

    def reload_certificate(self) -> None:
        """New connections get the certificate that now lies in the folder.

        Errors: OSError, ssl.SSLError where it cannot be used; the old one stays then.
        """
        # Loaded apart: opening the key takes a second, in which a context in use would have none.
        certified = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certified.load_cert_chain(
            self._folder.server_certificate, self._folder.server_key, self._passphrase
        )

        def present(connection: ssl.SSLObject, _name: str, _context: ssl.SSLContext) -> None:
            connection.context = certified

        for server in (self._control, self.firms):
            if server.config.ssl is not None:
                # Called in every handshake, with or without a server's name.
                server.config.ssl.sni_callback = present

    def _state(self) -> GatewayState:
        return GatewayState(
            os.getpid(),
            time.time(),
            _address(self._sockets.control),
            _address(self._sockets.firms),
            _address(self._sockets.metrics),
        )


def _bind(host: str, port: int, setting: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        bound = socket.create_server((host, port), family=family, backlog=256)
    except OSError as error:
        raise FoedusError(
            f"Expected to listen on {host} port {port} ({setting} in consortium.yaml), got "
            f"{error.strerror}. Does another coordinator run here?"
        ) from error
    bound.setblocking(False)
    return bound


def _address(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def _until_started(server: Server, task: asyncio.Task[None]) -> None:
    while not server.started:
        if task.done():
            raise FoedusError("Expected the listeners to start, one ended; see the log.")
        await asyncio.sleep(0.02)


def _stop_when_told(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if not sys.stdin.isatty() and _is_pipe(sys.stdin.fileno()):
        # The supervisor holds the other end: if it dies, even by SIGKILL, we stop too.
        loop.add_reader(sys.stdin.fileno(), stop.set)


def _is_pipe(descriptor: int) -> bool:
    return stat.S_ISFIFO(os.fstat(descriptor).st_mode)
