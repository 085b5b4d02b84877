"""Slots in this process that take turns as chance has it: every order of events that several devices could lead to."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

from rfflow.config.spec import ExperimentSpec
from rfflow.runs.events import Command, Event, Heard, Lost, Train, Up
from tests.support.counting import CountingWorker


@dataclass
class _Place:
    """One worker, as the far end of a wire would have it."""

    worker: CountingWorker
    commands: deque[Command] = field(default_factory=deque)
    told: deque[tuple[int | None, Event]] = field(default_factory=deque)
    is_training: bool = False

    @property
    def has_work(self) -> bool:
        return bool(self.told or self.commands) or self.is_training

    def work(self) -> None:
        """Carry out one command, or take one step."""
        if self.is_training and not (self.commands and not isinstance(self.commands[0], Train)):
            told = self.worker.advance()
            if told is None:
                self.is_training = False
            else:
                self.told.append(told)
            return
        command = self.commands.popleft()
        self.told.extend((command.run, event) for event in self.worker.do(command))
        if isinstance(command, Train):
            self.is_training = True


class InterleavedSlots:
    """Some slots whose workers count.

    Args:
        spec: what all runs have in common.
        count: how many.
        draw: says which of them is next to do or to tell something.
        losses: how many of a hundred events are the loss of a worker.
    """

    def __init__(self, spec: ExperimentSpec, count: int, draw: random.Random, losses: int = 0):
        self.count = count
        self._spec = spec
        self._draw = draw
        self._losses = losses
        self._places: dict[int, _Place] = {}
        self._lost: deque[int] = deque()

    def open(self) -> None:
        """Start nobody yet."""

    def send(self, slot: int, command: Command) -> None:
        """Queue a command where a worker is, or would be."""
        if slot in self._lost:
            return  # its wire is broken, and nobody has heard of it yet
        if slot not in self._places:
            place = self._places[slot] = _Place(CountingWorker(self._spec, lambda run, event: None))
            place.told.append((None, Up(0, "toy")))
        self._places[slot].commands.append(command)

    def hear(self, timeout: float | None = None) -> Heard | None:
        """Let somebody work until something is told, or nobody has anything to do."""
        while True:
            if self._lost and self._draw.random() < 0.5:
                return Heard(self._lost.popleft(), None, Lost("chance had it"))
            busy = [slot for slot, place in self._places.items() if place.has_work]
            if not busy:
                if self._lost:
                    continue
                assert timeout is not None, "it waits for slots that have nothing to do"
                return None
            slot = self._draw.choice(busy)
            place = self._places[slot]
            if self._draw.randrange(100) < self._losses:
                self._lose(slot)
            elif place.told:
                run, event = place.told.popleft()
                return Heard(slot, run, event)
            else:
                place.work()
                if timeout == 0:
                    return None

    def hurry(self) -> None:
        """Make every worker leave its chunk."""
        for place in self._places.values():
            place.worker.hurry()

    def kill(self, slot: int) -> None:
        """End a worker."""
        if slot in self._places:
            self._lose(slot)

    def close(self) -> None:
        """End all of them."""
        self._places.clear()
        self._lost.clear()

    def _lose(self, slot: int) -> None:
        """What it has told and nobody has heard is gone, too."""
        del self._places[slot]
        self._lost.append(slot)
