"""Sleep until something happens in a directory. Events only wake; whoever wakes looks for itself."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from watchdog.observers.api import BaseObserver

log = logging.getLogger(__name__)

_TELLING = {"created", "modified", "moved", "closed", "deleted", "attrib"}


class Watch:
    """Wakes a waiter when a file that interests it appears or changes, or when somebody calls :meth:`wake`.

    The observer is started by the first wait, so an experiment that never idles never pays for it.
    """

    def __init__(self, directory: Path, interests: Callable[[str], bool], polling: bool = False):
        self._directory = directory
        self._interests = interests
        self._polling = polling
        self._woken = threading.Event()
        self._observer: BaseObserver | None = None

    def start(self) -> bool:
        """Start watching if nothing watches yet; return whether that is so, and events before now are unknown."""
        if self._observer is not None and self._observer.is_alive():
            return False
        self._observer = self._start_observer()
        return True

    def wait(self, timeout: float | None) -> bool:
        """Block until something happens; return whether it did before the timeout (seconds)."""
        happened = self._woken.wait(timeout)
        self._woken.clear()
        return happened

    def wake(self) -> None:
        """End the wait, or the next one if nobody waits. May be called from any thread."""
        self._woken.set()

    def stop(self) -> None:
        """Stop watching; the next wait starts anew."""
        observer, self._observer = self._observer, None
        if observer is not None:
            with contextlib.suppress(RuntimeError):
                observer.stop()
                observer.join(timeout=2)

    def dispatch(self, event: Any) -> None:
        """Take an event from watchdog (this is its handler interface)."""
        if event.event_type not in _TELLING:
            return  # our own reading opens and closes files
        paths = [os.fsdecode(path) for path in (event.src_path, event.dest_path) if path]
        is_directory_itself = event.event_type in ("deleted", "moved") and str(self._directory) in paths
        if is_directory_itself or any(self._interests(os.path.basename(path)) for path in paths):
            self._woken.set()

    def _start_observer(self) -> BaseObserver | None:
        from watchdog.observers import Observer
        from watchdog.observers.polling import PollingObserver

        for kind in [PollingObserver] if self._polling else [Observer, PollingObserver]:
            observer = kind()
            observer.daemon = True
            try:
                observer.schedule(self, str(self._directory), recursive=False)  # type: ignore[arg-type]
                observer.start()
            except (OSError, RuntimeError) as error:  # no watches or descriptors left, or the directory is gone
                log.warning("Cannot watch %s with %s: %s", self._directory, kind.__name__, error)
                continue
            return observer
        return None
