"""Signal handlers that a run sets: they hold while it has the device, and take nothing from whoever listened before."""

from __future__ import annotations

import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any

Handlers = Mapping[int, Any]

# Not SIGCHLD: torch sets that once for the process, to notice workers of a DataLoader that die, and never again.
_SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGCONT", "SIGTSTP")
    if hasattr(signal, name)
)


@dataclass(frozen=True)
class _Both:
    """Calls a run's handler, and then the one that was there before: the experiment has to hear of a SIGTERM too."""

    own: Any
    outer: Any

    def __call__(self, number: int, frame: FrameType | None) -> None:
        try:
            if callable(self.own):
                self.own(number, frame)
        finally:
            if callable(self.outer) and self.outer is not signal.default_int_handler:
                self.outer(number, frame)


def read_handlers() -> Handlers:
    """Return who hears which signal."""
    return {number: signal.getsignal(number) for number in _SIGNALS}


def own_handlers(outer: Handlers, seen: Handlers) -> Handlers:
    """Return what a run has set for itself, of what is ``seen`` when it leaves the device."""
    own = {number: handler for number, handler in seen.items() if handler != outer[number]}
    return {number: handler.own if isinstance(handler, _Both) else handler for number, handler in own.items()}


def give_handlers(own: Handlers, outer: Handlers) -> None:
    """Let a run hear what it asked to hear."""
    for number, handler in own.items():
        _set(number, _Both(handler, outer[number]))


def set_handlers(wanted: Handlers, seen: Handlers) -> None:
    """Put handlers back."""
    for number, handler in wanted.items():
        if handler != seen[number]:
            _set(number, handler)


def _set(number: int, handler: Any) -> None:
    # Python lets nobody else set handlers, so there is nothing to put back; None is one that was not set from Python.
    if threading.current_thread() is threading.main_thread() and handler is not None:
        signal.signal(number, handler)
