"""How much of the coordinator one connection, one firm or all of them may take."""

from __future__ import annotations

from dataclasses import dataclass

from server.consortium.settings import ConsortiumSettings

MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """All of them; the defaults are not settings because nothing in a deployment calls for it."""

    max_body_bytes: int
    max_connections: int
    max_connections_per_address: int
    header_seconds: float
    body_idle_seconds: float
    long_poll_seconds: float
    # Replies of one firm that the run has not taken yet.
    max_unread_bytes: int
    # A body or response that crawls along is cut off even if it never pauses.
    transfer_seconds: float = 600.0
    # Bodies of one firm that are held in memory at a time; its further requests queue.
    bodies_at_a_time: int = 8
    # Objects of one reply: with 5 MiB each, 40 GiB.
    max_tree_objects: int = 8192
    # What one of these takes in the announcement (70 bytes), with some room; and all else in it.
    tree_object_bytes: int = 80
    small_body_bytes: int = 64 << 10
    # Idle connections are kept for longer than the pause between two of a SuperNode's polls.
    keep_alive_seconds: float = 15.0
    member_body_bytes: int = MIB

    @property
    def max_announcement_bytes(self) -> int:
        """A reply without its objects. Parsed, it takes up to 25 times its bytes in memory."""
        return self.max_tree_objects * self.tree_object_bytes + self.small_body_bytes

    @classmethod
    def of(cls, settings: ConsortiumSettings) -> Limits:
        """As the consortium's settings have them."""
        return cls(
            max_body_bytes=settings.max_body_mib * MIB,
            max_connections=settings.max_connections,
            max_connections_per_address=settings.max_connections_per_address,
            header_seconds=settings.header_seconds,
            body_idle_seconds=settings.body_idle_seconds,
            long_poll_seconds=settings.long_poll_seconds,
            max_unread_bytes=settings.max_unread_mib * MIB,
        )
