"""TensorBoard's files of events, written without a thread and without a file that stays open for each.

TensorBoard's own writer starts a thread for every file and keeps the file open. An experiment has a file a run.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import socket
import time
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import FileWriter, SummaryWriter

_NUMBERS = itertools.count()


class CurvesWriter(SummaryWriter):
    """A ``SummaryWriter`` that writes when it is told to, or when enough waits; then an ``OSError`` may come of it."""

    def _get_file_writer(self) -> Any:
        file: Any = self.file_writer
        if file is None:
            file = FileWriter.__new__(FileWriter)
            file.event_writer = EventsFile(Path(self.log_dir), self.max_queue, self.flush_secs)
            vars(self).update(file_writer=file, all_writers={self.log_dir: file})
        # What was purged is said as it always is, now that the file is there.
        if self.purge_step is not None:
            step, self.purge_step = self.purge_step, None
            file.add_event(Event(step=step, file_version="brain.Event:2"))
            file.add_event(Event(step=step, session_log=SessionLog(status=SessionLog.START)))
        return file


class EventsFile:
    """One file, which is opened to append to it and closed again; what torch calls an event writer."""

    def __init__(self, folder: Path, max_queue: int, flush_secs: float):
        """Make the folder and the file."""
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files of a folder in the order of their names.
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_NUMBERS):06d}"
        self._path = folder / name
        self._max_queue, self._flush_secs = max_queue, flush_secs
        self._waiting = io.BytesIO()
        self._count = 0
        self._flushed = time.monotonic()
        self._records = RecordWriter(self._waiting)
        self.add_event(Event(wall_time=time.time(), file_version="brain.Event:2"))
        self.flush()

    def get_logdir(self) -> str:
        """Return the folder."""
        return str(self._path.parent)

    def add_event(self, event: Event) -> None:
        """Take an event in, and write what waits if that is much, or old.

        Raises:
            OSError: if it cannot be written; it waits for the next time then.
        """
        self._records.write(event.SerializeToString())
        self._count += 1
        if self._count > self._max_queue or time.monotonic() - self._flushed > self._flush_secs:
            self.flush()

    def flush(self) -> None:
        """Write what waits, all of it or nothing.

        Raises:
            OSError: if it cannot be written; it waits for the next time then.
        """
        if not self._count:
            return
        self._flushed = time.monotonic()
        with self._path.open("ab", buffering=0) as file:
            before = file.tell()
            try:
                if file.write(self._waiting.getvalue()) != self._waiting.tell():
                    raise OSError(f"There is no room for all of {self._path}")
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(before)
                raise
        self._waiting.seek(0)
        self._waiting.truncate()
        self._count = 0

    def reopen(self) -> None:
        """Do nothing: it is never closed."""

    def close(self) -> None:
        """Write what waits."""
        self.flush()
