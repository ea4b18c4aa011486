"""What the guard tells about its work: a record of each request, counted and logged elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

# The reason of a request whose client went away before it was answered.
CLIENT_GONE = "client_gone"


@dataclass(frozen=True)
class Served:
    """A request that was answered, or refused with a reason. It holds nothing of its content.

    path: "other" where it is none that is offered. who: node id or firm, "" where unknown.
    """

    method: str
    path: str
    status: int
    reason: str
    text: str
    who: str
    address: str
    bytes_in: int
    bytes_out: int
    seconds: float

    @property
    def is_refused(self) -> bool:
        """True where the guard said no; a client that went away was not refused."""
        return self.reason not in ("", CLIENT_GONE)


class Observer(Protocol):
    """Whoever counts and logs. None of these may block."""

    def served(self, served: Served) -> None:
        """A request is over."""
        ...

    def connection_refused(self, address: str, reason: str) -> None:
        """A connection was closed before it could ask anything, or for asking too slowly."""
        ...
