"""Has a worker that trains been silent for too long? What that is, is learnt from the chunks that have ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

LEAST = 120.0
"""Seconds of silence that are never too long: libraries compile, disks are busy."""
FACTOR = 10.0
"""How many times the longest silence so far is too long."""


class Silence:
    """Watches over the slots on which something trains.

    Args:
        now: tells the time in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic):
        self._now = now
        self._since: dict[int, float] = {}
        self._longest: dict[int, float] = {}
        """The longest silence in the turn that is going, by slot."""
        self._usual: float | None = None
        """The longest silence of all turns that have ended."""

    def begin(self, slot: int) -> None:
        """A chunk begins on a slot."""
        self._since[slot] = self._now()
        self._longest[slot] = 0.0

    def hear(self, slot: int) -> None:
        """A slot has told something."""
        if slot in self._since:
            now = self._now()
            self._longest[slot] = max(self._longest[slot], now - self._since[slot])
            self._since[slot] = now

    def end(self, slot: int) -> None:
        """The chunk has ended, as it should."""
        self.hear(slot)
        self._usual = max(self._usual or 0.0, self._longest.get(slot, 0.0))
        self.forget(slot)

    def forget(self, slot: int) -> None:
        """The chunk has ended in some other way."""
        self._since.pop(slot, None)
        self._longest.pop(slot, None)

    @property
    def limit(self) -> float | None:
        """Seconds that are too long; ``None`` while nothing is known."""
        return None if self._usual is None else max(LEAST, FACTOR * self._usual)

    def overdue(self, slots: Iterable[int]) -> list[int]:
        """Return those of the slots that have been silent for too long."""
        limit, now = self.limit, self._now()
        if limit is None:
            return []
        return [slot for slot in slots if slot in self._since and now - self._since[slot] > limit]
