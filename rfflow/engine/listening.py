"""What workers tell is heard here, and that one has not told of something for too long."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from rfflow.engine.losses import Losses
from rfflow.engine.silence import Silence, Work
from rfflow.runs.events import Command, Heard, Ready, Refused, Saved, Taken, Unsaved, Up
from rfflow.slots.slots import Slots

log = logging.getLogger(__name__)

_WATCH = 5.0
"""Seconds between two looks at who is silent."""


class Listener:
    """Gives commands to slots, hears what comes of them, and ends the worker of a slot that is silent for too long.

    Args:
        slots: where the workers are.
        losses: learns who has begun.
        handle: takes whatever is heard while something is awaited.
    """

    def __init__(self, slots: Slots, losses: Losses, handle: Callable[[Heard], None]):
        self._slots = slots
        self.handle = handle
        self._losses = losses
        self._silence = Silence(lambda: self._listened)
        self._listened = 0.0
        """Seconds for which workers could have been heard: not those in which this process was busy, or suspended."""

    def send(self, slot: int, command: Command, work: Work | None = None) -> None:
        """Give a worker a command.

        Args:
            slot: whose.
            command: what it is to do.
            work: what kind of work that is, if it is to be told of within the time that such work takes.
        """
        if work is not None:
            self._silence.begin(slot, work, command.run)
        self._slots.send(slot, command)

    def begin_turn(self, slot: int, run: int) -> None:
        """A chunk begins beside another."""
        self._silence.begin(slot, "train", run)

    def end_turn(self, slot: int, run: int) -> None:
        """A chunk is over."""
        self._silence.end(slot, "train", run)

    def lose(self, slot: int) -> int | None:
        """A worker is gone; return the run that it was building."""
        building = self._silence.building(slot)
        self._silence.forget(slot)
        return building

    def hear(self, timeout: float | None = None) -> Heard | None:
        """Wait for what any slot tells, and end the worker of one that has been silent for too long."""
        watches = self._slots.count > 1 and timeout != 0
        began = time.monotonic()
        heard = self._slots.hear(min(timeout or _WATCH, _WATCH) if watches else timeout)
        self._listened += min(time.monotonic() - began, 2 * _WATCH)
        if heard is not None:
            self._note(heard)
        if watches:
            self._end_the_silent()
        return heard

    def handle_while(self, is_awaited: Callable[[], bool]) -> None:
        """Hear what there is to hear, and have it handled, until what is awaited has come."""
        while is_awaited():
            heard = self.hear()
            if heard is not None:
                self.handle(heard)

    def _note(self, heard: Heard) -> None:
        self._silence.hear(heard.slot)
        if isinstance(heard.event, Ready | Refused | Taken):
            self._silence.end(heard.slot, "build", heard.run)
        elif isinstance(heard.event, Saved | Unsaved):
            self._silence.end(heard.slot, "write", heard.run)
        elif isinstance(heard.event, Up):
            self._losses.up(heard.slot)

    def _end_the_silent(self) -> None:
        for overdue in self._silence.overdue():
            log.warning("%s; its worker is ended.", overdue)
            self._silence.forget(overdue.slot)
            self._slots.kill(overdue.slot)
