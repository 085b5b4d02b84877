"""Ctrl-C, SIGTERM and SIGHUP: once to stop in order, Ctrl-C or SIGTERM twice to leave at once."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from rfflow.tracking.streams import announce

log = logging.getLogger(__name__)


class Interrupted(KeyboardInterrupt):
    """Somebody asked the experiment to end, and everything is saved."""

    def __init__(self, number: int):
        super().__init__(f"by {signal.Signals(number).name}")
        self.number = number
        self.exit_status = 128 + number
        """130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP, as shells have it."""


class Interruption:
    """Hears the signals while an experiment runs.

    The first one is a request: whoever trains is told to hurry to a place that can be saved, and the engine asks
    :attr:`number`. Where nothing trains it raises. The second one ends the process at once, and so does the end of
    ``grace`` seconds after a SIGTERM, because whoever sent it will not wait. SIGHUP, which says that the terminal was
    closed, is a request only: shells and the system send it several times, and beside a SIGTERM. A notebook is not
    left: there the second Ctrl-C raises.
    """

    def __init__(self, grace: float, hurry: Callable[[], None], farewell: Callable[[], str]):
        """Hear nothing yet.

        Args:
            grace: seconds.
            hurry: called in the signal handler.
            farewell: returns what to say when the process is left at once.
        """
        self.number: int | None = None
        """The signal that came."""
        self._grace = grace
        self._hurry = hurry
        self._farewell = farewell
        self._may_raise = False
        self._demands = 0
        """How many signals came that are sent by somebody who waits."""
        self._timer: threading.Timer | None = None

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Hear the signals inside; in a thread that is not the main one nothing can be heard."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[int, Any] = {}
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # by nohup, or in the background of a shell
                before[number] = signal.signal(number, self._on_signal)
        try:
            yield
        finally:
            for heard, handler in before.items():
                signal.signal(heard, handler)
            if self._timer is not None:
                self._timer.cancel()

    @contextmanager
    def raising(self) -> Iterator[None]:
        """Let a signal end what is done inside: nothing there is lost by it."""
        self.raise_if_asked()
        self._may_raise = True
        try:
            yield
        finally:
            self._may_raise = False

    def raise_if_asked(self) -> None:
        """Raise what was asked for.

        Raises:
            Interrupted: if a signal came.
        """
        if self.number is not None:
            raise Interrupted(self.number)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number != signal.SIGHUP:
            self._demands += 1
            if self._demands > 1:
                if number == signal.SIGINT and is_interactive():
                    raise Interrupted(number)
                self._leave(128 + number)
        if number == signal.SIGTERM:
            self._timer = threading.Timer(self._grace, self._leave, [128 + number])
            self._timer.daemon = True
            self._timer.start()
        if self.number is not None:
            return
        self.number = number
        if self._may_raise:
            self._may_raise = False
            raise Interrupted(number)
        self._hurry()
        if number == signal.SIGINT:
            announce("Finishing the step and saving. Ctrl-C once more leaves at once.")

    def _leave(self, status: int) -> None:
        show_cursor = "\x1b[?25h" if sys.__stderr__ is not None and sys.__stderr__.isatty() else ""
        _say(f"{show_cursor}\n{self._farewell()}\n")
        os._exit(status)


def is_interactive() -> bool:
    """Whether somebody types what this process does, in a notebook say: it is not ours to end."""
    return hasattr(sys, "ps1")


def _say(text: str) -> None:
    # Past whatever a run has put in the place of the streams; a signal may fall into the middle of a print.
    with suppress(OSError):
        os.write(2, text.encode("utf-8", "replace"))
