"""Has a worker been silent for too long? What that is, is learnt from what workers have done before."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Work = Literal["train", "build", "write"]

LEAST = 120.0
"""Seconds of silence that are never too long: libraries compile, disks are busy..."""
LEAST_OF_A_BUILD = 600.0
"""... and a model may have to be fetched first."""
FACTOR = 10.0
"""How many times the longest silence so far is too long."""
LEAST_OF_THE_FIRST = 4 * 3600.0
"""Seconds of silence that are never too long while nothing of the kind has been done yet: models are large."""

_WORDS: dict[Work, str] = {"train": "trains there", "build": "is built there", "write": "is written to the disk"}


@dataclass
class _Watched:
    since: float
    """When something was heard of it last."""
    longest: float = 0.0
    """The longest silence so far."""


@dataclass(frozen=True)
class Overdue:
    """A worker that has not told of something for too long."""

    slot: int
    run: int | None
    work: Work
    limit: float
    """Seconds."""

    def __str__(self) -> str:
        who = "data" if self.run is None else f"run {self.run}"
        return f"Slot {self.slot} has been silent for more than {self.limit:.0f} s while {who} {_WORDS[self.work]}"


class Silence:
    """Watches over what workers are to do, and to tell of.

    Training and building go on in one thread of a worker: whatever it tells, it is alive. Writing goes on in another,
    so that a checkpoint is timed from its command, whatever else is told meanwhile.

    Args:
        now: tells the time in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic):
        self._now = now
        self._watched: dict[tuple[int, Work, int | None], _Watched] = {}
        self._usual: dict[Work, float] = {}
        """The longest silence of all that has been done."""

    def begin(self, slot: int, work: Work, run: int | None) -> None:
        """A slot is told to do something for a run, or for none in particular."""
        self._watched[slot, work, run] = _Watched(self._now())

    def hear(self, slot: int) -> None:
        """A slot has told something."""
        for (where, work, _), watched in self._watched.items():
            if where == slot and work != "write":
                self._note(watched)

    def end(self, slot: int, work: Work, run: int | None) -> None:
        """It is done."""
        watched = self._watched.pop((slot, work, run), None)
        if watched is not None:
            self._note(watched)
            self._usual[work] = max(self._usual.get(work, 0.0), watched.longest)

    def building(self, slot: int) -> int | None:
        """Return the run that a slot builds now, if it builds one: what it was told first it does first."""
        return next((run for where, work, run in self._watched if where == slot and work == "build"), None)

    def forget(self, slot: int) -> None:
        """Nothing more will be told of what the slot was to do."""
        self._watched = {key: watched for key, watched in self._watched.items() if key[0] != slot}

    def limit(self, work: Work) -> float:
        """Return the seconds that are too long."""
        if work not in self._usual:
            return LEAST_OF_THE_FIRST
        # What is not trained may have to wait for a step of what is.
        longest = self._usual[work] if work == "train" else max(self._usual.values())
        return max(LEAST_OF_A_BUILD if work == "build" else LEAST, FACTOR * longest)

    def overdue(self) -> list[Overdue]:
        """Return what has not been told of for too long, one for each slot."""
        now = self._now()
        found: dict[int, Overdue] = {}
        for (slot, work, run), watched in self._watched.items():
            if work == "train" and self.building(slot) is not None:
                continue  # it builds another between two steps, which has a limit of its own
            limit = self.limit(work)
            if now - watched.since > limit:
                found.setdefault(slot, Overdue(slot, run, work, limit))
        return list(found.values())

    def _note(self, watched: _Watched) -> None:
        now = self._now()
        watched.longest = max(watched.longest, now - watched.since)
        watched.since = now
