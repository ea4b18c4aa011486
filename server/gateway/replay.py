"""A memory of signatures that were used: each is good for one request."""

from __future__ import annotations

from collections import OrderedDict


class ReplayMemory:
    """Remembers keys for `window_seconds`; only keys of checked signatures should be given to it.

    Memory: about 200 bytes for each request within the window.
    """

    def __init__(self, window_seconds: float) -> None:
        self._window_seconds = window_seconds
        self._seen: OrderedDict[bytes, float] = OrderedDict()

    def first_use(self, key: bytes, now_seconds: float) -> bool:
        """True where `key` has not been given within the window; it is remembered from now on."""
        while self._seen:
            oldest, used_at = next(iter(self._seen.items()))
            if used_at > now_seconds - self._window_seconds:
                break
            del self._seen[oldest]
        if key in self._seen:
            return False
        self._seen[key] = now_seconds
        return True

    def __len__(self) -> int:
        return len(self._seen)
