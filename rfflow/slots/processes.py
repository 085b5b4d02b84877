"""A slot for each device of this machine: one spawned process a device, started when the first run comes to it."""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import os
import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from typing import Any

from rfflow.config.spec import ExperimentSpec
from rfflow.runs.events import Command, Heard, Lost, Up
from rfflow.slots.serve import Seat, packed, serve

log = logging.getLogger(__name__)

_PATIENCE = 20.0
"""Seconds that a worker is given to end in order."""


@dataclass
class _Worker:
    process: SpawnProcess
    wire: connection.Connection
    nudges: connection.Connection
    """Only for :meth:`ProcessSlots.hurry`, which a signal may call in the middle of a command."""
    is_up: bool = False
    """Whether it has begun."""


class ProcessSlots:
    """Workers in processes of this machine.

    Args:
        spec: what all runs have in common.
        environments: what each slot's process finds in its environment besides what this one has; one a slot.
        make_worker: makes another worker than the one that trains; it must be importable.
    """

    def __init__(
        self,
        spec: ExperimentSpec,
        environments: Sequence[Mapping[str, str]],
        make_worker: Callable[..., Any] | None = None,
    ):
        self.count = len(environments)
        self._spec = spec
        self._environments = environments
        self._make_worker = make_worker
        self._workers: dict[int, _Worker] = {}
        # Before Python's own, which would wait for processes that wait for this one.
        atexit.register(self._end_all)

    def open(self) -> None:
        """Start nothing yet: a process is started when the first run comes to its slot."""

    def send(self, slot: int, command: Command) -> None:
        """Give a worker a command, starting its process where there is none.

        Raises:
            ConfigError: if what it holds cannot go to another process.
        """
        data = packed(command)
        worker = self._workers.get(slot) or self._start(slot)
        try:
            worker.wire.send_bytes(data)
        except OSError:  # it is gone; hear() will tell
            log.debug("The worker of slot %s is gone", slot)

    def hear(self, timeout: float | None = None) -> Heard | None:
        """Wait for the next event of any worker."""
        wires = {worker.wire: slot for slot, worker in self._workers.items()}
        for ready in connection.wait(list(wires), timeout):
            slot = wires[ready]  # type: ignore[index]
            try:
                heard: Heard = pickle.loads(self._workers[slot].wire.recv_bytes())
            except (EOFError, OSError):
                return self._bury(slot)
            if isinstance(heard.event, Up):
                self._workers[slot].is_up = True
            if isinstance(heard.event, Lost):
                self._bury(slot)
            return heard
        return None

    def hurry(self) -> None:
        """Make every worker leave its chunk at the next place from which a resume is exact."""
        for worker in self._workers.values():
            try:
                worker.nudges.send_bytes(b"")
            except OSError:
                continue

    def kill(self, slot: int) -> None:
        """End a worker that does not answer any more; hear() will tell that it is gone."""
        if (worker := self._workers.get(slot)) is not None:
            worker.process.kill()

    def pid(self, slot: int) -> int | None:
        """Return the process of a slot, where there is one."""
        worker = self._workers.get(slot)
        return None if worker is None else worker.process.pid

    def close(self) -> None:
        """End every process in order, and those that do not end, at once."""
        for worker in self._workers.values():
            try:
                worker.wire.send_bytes(packed(None))
            except OSError:
                continue
        until = time.monotonic() + _PATIENCE
        for worker in self._workers.values():
            self._drain(worker, until)
            worker.process.join(max(0.0, until - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.wire.close()
            worker.nudges.close()
        self._workers.clear()
        atexit.unregister(self._end_all)

    def _end_all(self) -> None:
        """Leave nobody behind where this process ends without :meth:`close`."""
        for worker in self._workers.values():
            worker.process.kill()

    def _drain(self, worker: _Worker, until: float) -> None:
        """Read what it still tells, so that it is not held up by it."""
        try:
            while worker.wire.poll(max(0.0, until - time.monotonic())):
                worker.wire.recv_bytes()
        except (EOFError, OSError):
            return

    def _start(self, slot: int) -> _Worker:
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        listening, nudges = context.Pipe(duplex=False)
        seat = Seat(slot, self._spec, self._make_worker, multiprocessing.get_start_method())
        # Not a daemon: those may have no processes of their own, and a run's DataLoader may.
        process = context.Process(target=serve, args=(seat, there, listening), name=f"rfflow-slot-{slot}")
        with _environment(self._environments[slot]):
            process.start()
        there.close()
        listening.close()
        worker = self._workers[slot] = _Worker(process, here, nudges)
        return worker

    def _bury(self, slot: int) -> Heard:
        worker = self._workers.pop(slot)
        worker.process.join(_PATIENCE)
        worker.wire.close()
        worker.nudges.close()
        code = worker.process.exitcode
        how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with status {code}"
        if worker.is_up:
            return Heard(slot, None, Lost(f"its process {how}"))
        # One that is killed may begin the next time; one that leaves by itself will do so again.
        is_for_good = code is not None and code > 0
        return Heard(
            slot, None, Lost(f"its process {how} before it could begin; its own words stand above", is_for_good)
        )


@contextmanager
def _environment(more: Mapping[str, str]) -> Any:
    """Let a process that is started inside find this in its environment, from before its first import."""
    before = {key: os.environ.get(key) for key in more}
    os.environ.update(more)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
