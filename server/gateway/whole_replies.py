"""Replies that the run has not fetched yet: its question is held until there is one.

A run that asks again and again for replies takes the coordinator's time from the sites that upload
them, and hears of each only when it asks next.
"""

from __future__ import annotations

import asyncio
import time

# What nobody has fetched by then is a reply that nobody waits for: it came after a round's end.
FORGOTTEN_SECONDS = 10.0


class WholeReplies:
    """Of all runs together; lives in one event loop."""

    def __init__(self) -> None:
        self._came_at: dict[str, float] = {}
        self._bell = asyncio.Event()

    def came(self, answers: str) -> None:
        """The reply to the message `answers` is there, or was given up: Flower knows which."""
        self._came_at[answers] = time.monotonic()
        self._bell.set()
        self._bell = asyncio.Event()

    def fetched(self, answers: str) -> None:
        """The run has it."""
        self._came_at.pop(answers, None)

    async def wait(self, seconds: float) -> bool:
        """As `next`, but False at once where one waits to be fetched: it is another question's."""
        oldest = time.monotonic() - FORGOTTEN_SECONDS
        self._came_at = {one: at for one, at in self._came_at.items() if at > oldest}
        if self._came_at:
            return False
        return await self.next(seconds)

    async def next(self, seconds: float) -> bool:
        """True when the next one comes, False when the time is up."""
        bell = self._bell
        try:
            await asyncio.wait_for(bell.wait(), seconds)
        except TimeoutError:
            return False
        return True
