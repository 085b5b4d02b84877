"""Two slots with real workers in this process, which take turns: what two devices do, without two processes."""

from __future__ import annotations

import queue
import random
from collections import deque

from rfflow.config.spec import ExperimentSpec
from rfflow.runs.events import Command, Event, Heard, Lost, Train, Up
from rfflow.worker.device import make_device_fabric
from rfflow.worker.worker import Worker


class TwoWorkers:
    """Slots whose workers train in turn, as chance has it.

    Args:
        spec: what all runs have in common.
        draw: says whose turn it is.
    """

    count = 2

    def __init__(self, spec: ExperimentSpec, draw: random.Random):
        self._spec = spec
        self._draw = draw
        self._workers: dict[int, Worker] = {}
        self._commands: dict[int, deque[Command]] = {}
        self._training: set[int] = set()
        self._told: queue.SimpleQueue[Heard] = queue.SimpleQueue()

    def open(self) -> None:
        """Start nobody yet."""

    def send(self, slot: int, command: Command) -> None:
        """Queue a command."""
        if slot not in self._workers:
            spec = self._spec

            def tell(run: int | None, event: Event) -> None:
                self._told.put(Heard(slot, run, event))

            self._workers[slot] = Worker(spec, make_device_fabric(spec), tell)
            self._commands[slot] = deque()
            tell(None, Up(slot, "cpu"))
        self._commands[slot].append(command)

    def hear(self, timeout: float | None = None) -> Heard | None:
        """Let somebody work until something is told, or nobody has anything to do."""
        while self._told.empty():
            busy = sorted({slot for slot, waiting in self._commands.items() if waiting} | self._training)
            if not busy or timeout == 0:
                break
            self._work(self._draw.choice(busy))
        try:
            return self._told.get_nowait() if timeout == 0 else self._told.get(timeout=timeout)
        except queue.Empty:
            return None

    def _work(self, slot: int) -> None:
        """Carry out the commands that have come, or train to the next event."""
        worker, commands = self._workers[slot], self._commands[slot]
        if commands and not (slot in self._training and isinstance(commands[0], Train)):
            command = commands.popleft()
            if isinstance(command, Train):
                self._training.add(slot)
            for event in worker.do(command):
                self._told.put(Heard(slot, command.run, event))
            return
        told = worker.advance()
        if told is None:
            self._training.discard(slot)
        else:
            self._told.put(Heard(slot, *told))

    def hurry(self) -> None:
        """Make every worker leave its chunk."""
        for worker in self._workers.values():
            worker.hurry()

    def kill(self, slot: int) -> None:
        """End a worker in the middle of what it does; all that it held is gone."""
        worker = self._workers.pop(slot, None)
        if worker is not None:
            self._training.discard(slot)
            self._commands.pop(slot)
            worker.close()
            self._told.put(Heard(slot, None, Lost("chance had it")))

    def close(self) -> None:
        """End both."""
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()
        self._commands.clear()
        self._training.clear()
