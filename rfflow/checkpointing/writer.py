"""The thread that writes checkpoints while the next run trains."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

_SOON = 1e-4
"""Seconds; a kernel on a CPU takes longer, so that writing gets on in the meantime."""


class Writer:
    """Writes checkpoints of suspended runs while other runs train; an error comes out at the next :meth:`check`."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="rfflow-checkpoint")
        self._writing: dict[int, Future[None]] = {}

    def submit(self, run: int, write: Callable[[], None]) -> None:
        """Begin to write a checkpoint of a run; one of it that is under way is waited for."""
        self.wait(run)
        self._writing[run] = self._pool.submit(_write, write)

    def wait(self, run: int) -> None:
        """Wait until the run's checkpoint is written: nothing that it is made of may change before.

        Raises:
            OSError: if it could not be written.
        """
        if run in self._writing:
            self._writing.pop(run).result()

    def check(self) -> None:
        """Raise what went wrong so far."""
        for run in [run for run, future in self._writing.items() if future.done()]:
            self.wait(run)

    def wait_for_all(self) -> None:
        """Wait for every checkpoint."""
        for run in list(self._writing):
            self.wait(run)

    def close(self) -> None:
        """Wait, whatever comes of it, and end the thread."""
        self._pool.shutdown()
        self._writing.clear()


class _GivingWay:
    """Lets the thread that trains have the interpreter back soon after each of its kernels, while anybody writes.

    It lets go of it for every kernel, and by default waits up to 5 ms to get it again while another thread computes in
    Python, as pickling an optimizer does: writing a checkpoint would hold training up for as long as it takes.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        """How many write now: two workers of one process may do so at once."""
        self._before = 0.0

    def __enter__(self) -> None:
        with self._lock:
            if not self._count:
                self._before = sys.getswitchinterval()
                sys.setswitchinterval(min(_SOON, self._before))
            self._count += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._count -= 1
            if not self._count:
                sys.setswitchinterval(self._before)


_giving_way = _GivingWay()


def _write(write: Callable[[], None]) -> None:
    with _giving_way:
        write()
