"""A slot for each device of this machine: one spawned process a device, started when the first run comes to it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from typing import Any

from rfflow.config.spec import ExperimentSpec
from rfflow.slots.serve import Seat, serve
from rfflow.slots.wired import OWN_WORDS, TOO_EARLY, Link, WiredSlots


class ProcessSlots(WiredSlots):
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
        super().__init__(len(environments))
        self._spec = spec
        self._environments = environments
        self._make_worker = make_worker

    def _start(self, slot: int) -> Link:
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
        return Link(_Process(process), here, nudges, process.pid)


class _Process:
    """What a worker runs in: Python itself would take it for running as long as anything that it has forked is."""

    def __init__(self, process: SpawnProcess):
        assert process.pid is not None
        self._process = process
        self._own: int | None = None
        with contextlib.suppress(AttributeError, OSError):  # not Linux, or a container that does not allow it
            self._own = os.pidfd_open(process.pid)

    @property
    def ended(self) -> int | None:
        return self._own

    def kill(self) -> None:
        self._process.kill()

    def join(self, timeout: float) -> bool:
        if self._own is None:
            self._process.join(timeout)
        else:
            connection.wait([self._own], timeout)
        return not self._process.is_alive()

    def how_ended(self, *, has_begun: bool) -> str:
        code, when = self._process.exitcode, "" if has_begun else TOO_EARLY
        if code is not None and code < 0:
            return f"its process was killed by signal {-code}{when}"
        return f"its process ended with status {code}{when}{'' if has_begun else OWN_WORDS}"

    def would_end_again(self) -> bool:
        # One that is killed may begin the next time; one that leaves by itself will do so again.
        return (self._process.exitcode or 0) > 0

    def forget(self) -> None:
        if self._own is not None:
            os.close(self._own)
            self._own = None


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
