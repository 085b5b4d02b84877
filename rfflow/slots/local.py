"""One device and one worker, in this process: a chunk trains while somebody waits for what comes of it."""

from __future__ import annotations

import queue
from collections.abc import Callable

from rfflow.runs.events import Command, Event, Heard, Train
from rfflow.worker.worker import Tell, Worker


class LocalSlots:
    """The one slot that needs nothing but this process.

    Args:
        make_worker: takes where the worker tells what happens beside its commands.
    """

    count = 1

    def __init__(self, make_worker: Callable[[Tell], Worker]):
        self._told: queue.SimpleQueue[Heard] = queue.SimpleQueue()
        self._is_training = False
        """Whether chunks are going."""
        self.worker = make_worker(self._tell)

    def open(self) -> None:
        """The worker is there already."""

    def send(self, slot: int, command: Command) -> None:
        """Carry out a command at once; a chunk goes on only while somebody waits in :meth:`hear`."""
        if isinstance(command, Train):
            self._is_training = True
        for event in self.worker.do(command):
            self._tell(command.run, event)

    def hear(self, timeout: float | None = None) -> Heard | None:
        """Return what was told, or train on until there is something."""
        if timeout != 0 and self._told.empty() and self._is_training:
            told = self.worker.advance()
            if told is not None:
                return Heard(0, *told)
            self._is_training = False
        try:
            return self._told.get(timeout=timeout) if timeout != 0 else self._told.get_nowait()
        except queue.Empty:
            return None

    def hurry(self) -> None:
        """Make whoever trains leave at the next place from which a resume is exact."""
        self.worker.hurry()

    def kill(self, slot: int) -> None:
        """It is this process, which waits as long as it takes."""

    def close(self) -> None:
        """Let go of every run; base models and data stay, for runs that may come yet."""
        self._is_training = False
        self.worker.close()

    def _tell(self, run: int | None, event: Event) -> None:
        self._told.put(Heard(0, run, event))
