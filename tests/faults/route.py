"""One site's way to the coordinator: a TCP proxy on loopback that can be cut, slowed and healed.

A cut way behaves as a cable does: nothing arrives, nobody is told, and what was sent before the
repair still comes through after it, unless one of the two ends has given up meanwhile.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from contextlib import suppress
from dataclasses import dataclass

_CHUNK_BYTES = 16 * 1024
# Of a slowed connection, so that what is under way is cut in its middle and not after it.
_PIECES_PER_SECOND = 4
_CONNECT_SECONDS = 5.0


class Route:
    """Listens on 127.0.0.1:`port` and passes everything on to a port of the same machine.

    bytes_per_second: of each direction of each connection; 0 = as fast as it goes. bytes_up: what
    has gone to that port since the beginning.
    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._up_is_open, self._down_is_open = threading.Event(), threading.Event()
        self.heal()
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._closed = False
        self.bytes_per_second = 0
        self.bytes_up = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """From now on nothing arrives, in neither direction."""
        self._up_is_open.clear()
        self._down_is_open.clear()

    def cut_answers(self) -> None:
        """From now on nothing comes back; what is sent arrives."""
        self._down_is_open.clear()

    def heal(self) -> None:
        """What was held back arrives, and what comes."""
        self._up_is_open.set()
        self._down_is_open.set()

    def break_off(self) -> None:
        """End every connection at once, as a firewall does that has forgotten them."""
        with self._lock:
            broken, self._sockets = self._sockets, set()
        for one in broken:
            _shut(one)

    def close(self) -> None:
        """End the proxy."""
        self._closed = True
        _shut(self._listener)
        self.heal()
        self.break_off()

    def _accept(self) -> None:
        while not self._closed:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=(near,), daemon=True).start()

    def _connect(self, near: socket.socket) -> None:
        self._up_is_open.wait()
        try:
            far = socket.create_connection(("127.0.0.1", self._target_port), _CONNECT_SECONDS)
        except OSError:
            _refuse(near)
            return
        far.settimeout(None)
        with self._lock:
            self._sockets |= {near, far}
        ways = [_Way(near, far, self._up_is_open), _Way(far, near, self._down_is_open)]
        for way in ways:
            threading.Thread(target=self._pass_on, args=(way,), daemon=True).start()

    def _pass_on(self, way: _Way) -> None:
        with suppress(OSError):
            while data := way.source.recv(_CHUNK_BYTES):
                self._deliver(way, data)
        # Neither half is of use without the other.
        _shut(way.source)
        _shut(way.sink)
        with self._lock:
            self._sockets -= {way.source, way.sink}

    def _deliver(self, way: _Way, data: bytes) -> None:
        while data:
            way.is_open.wait()
            rate = self.bytes_per_second
            piece = data[: max(1, rate // _PIECES_PER_SECOND)] if rate else data
            way.sink.sendall(piece)
            if way.is_open is self._up_is_open:
                with self._lock:
                    self.bytes_up += len(piece)
            if rate:
                time.sleep(len(piece) / rate)
            data = data[len(piece) :]


@dataclass(frozen=True)
class _Way:
    source: socket.socket
    sink: socket.socket
    is_open: threading.Event


def _refuse(near: socket.socket) -> None:
    """As near to a closed port as one gets that has already accepted: a reset, no orderly end."""
    near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    near.close()


def _shut(one: socket.socket) -> None:
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
