"""The firms' listener: TLS, and bounds on what a connection takes before it has asked anything.

uvicorn bounds neither the connections of one address nor the time that headers take, and a TLS
handshake may last a minute there. Connections are therefore accepted here, counted before TLS costs
anything, and handed to uvicorn's HTTP/1.1 protocol.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Callable

from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import Server, ServerState

from server.gateway.limits import Limits
from server.gateway.observing import Observer

# Room for a request line and the headers of a SuperNode, ten times over.
MAX_HEADER_BYTES = 16 << 10

# A client that does not answer the end of TLS is not waited for any longer.
TLS_GOODBYE_SECONDS = 1.0


class FirmConnection(H11Protocol):
    """One connection: the request line and headers of each request must come in time."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        header_seconds: float,
        refused: Callable[[str], None],
        lost: Callable[[], None],
    ) -> None:
        super().__init__(config, server_state, {})
        self._header_seconds = header_seconds
        self._report_refused = refused
        self._report_lost = lost
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._watch_headers()

    def data_received(self, data: bytes) -> None:
        """Wait on while a request's headers are incomplete."""
        super().data_received(data)
        self._watch_headers()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP; uvicorn would only log it, each time."""
        self._report_refused("no_http")
        super().send_400_response(msg)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadline."""
        self._stop_watching()
        self._report_lost()
        super().connection_lost(exc)

    def _watch_headers(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_watching()
        elif self._deadline is None and not self.transport.is_closing():
            self._deadline = self.loop.call_later(self._header_seconds, self._give_up)

    def _stop_watching(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._deadline = None
        if not self.transport.is_closing():
            self._report_refused("slow_headers")
            self.transport.abort()


class FirmsServer(Server):
    """uvicorn's server with our own way of accepting connections."""

    def __init__(self, config: Config, limits: Limits, observer: Observer) -> None:
        super().__init__(config)
        self._limits = limits
        self._observer = observer
        self._by_address: Counter[str] = Counter()
        self._accepting: asyncio.Task[None] | None = None
        self._beginning: set[asyncio.Task[None]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept on the one socket that is given, which must listen and not block."""
        self.servers = []
        (listening,) = sockets or []
        self._accepting = asyncio.create_task(self._accept(listening))
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more, let requests end, close."""
        if self._accepting is not None:
            self._accepting.cancel()
        await super().shutdown(sockets)

    @property
    def num_connections(self) -> int:
        """Connections that are open, those in the TLS handshake with them."""
        return self._by_address.total()

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, peer = await loop.sock_accept(listening)
            except OSError:
                # No file descriptors left, or the peer gave up before we came to it.
                await asyncio.sleep(0.1)
                continue
            address = str(peer[0])
            if reason := self._no_room(address):
                self._observer.connection_refused(address, reason)
                connection.close()
                continue
            self._by_address[address] += 1
            task = loop.create_task(self._begin(connection, address))
            self._beginning.add(task)
            task.add_done_callback(self._beginning.discard)

    async def _begin(self, connection: socket.socket, address: str) -> None:
        """The TLS handshake; then the connection lives by itself."""
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: FirmConnection(
                    self.config,
                    self.server_state,
                    self._limits.header_seconds,
                    refused=lambda reason: self._observer.connection_refused(address, reason),
                    lost=lambda: self._forget(address),
                ),
                connection,
                ssl=self.config.ssl,
                ssl_handshake_timeout=self._limits.header_seconds,
                ssl_shutdown_timeout=TLS_GOODBYE_SECONDS,
            )
        except OSError:
            # ssl.SSLError and timeouts are OSErrors too: plain HTTP, noise, or nothing at all came.
            self._forget(address)
            self._observer.connection_refused(address, "no_tls")
            connection.close()

    def _no_room(self, address: str) -> str:
        if self._by_address.total() >= self._limits.max_connections:
            return "too_many_connections"
        if self._by_address[address] >= self._limits.max_connections_per_address:
            return "too_many_of_one_address"
        return ""

    def _forget(self, address: str) -> None:
        self._by_address[address] -= 1
        if self._by_address[address] <= 0:
            del self._by_address[address]
