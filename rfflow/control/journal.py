"""What became of every op, for good: one JSON line for each op and run, in the experiment's ``ops.jsonl``."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from rfflow.errors import ConfigError

log = logging.getLogger(__name__)


def now() -> str:
    """Return the time of day as the journal writes it: ISO 8601, UTC, milliseconds."""
    return moment(time.time())


def moment(seconds: float) -> str:
    """Return seconds since the epoch as the journal writes a time of day."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True)
class Entry:
    """One line of the journal."""

    op: str
    """The verb: stop, resume, clone, delete."""
    run: int | None
    """The run it was applied to; None where an op was refused before it came to a run."""
    outcome: Literal["applied", "refused"]
    detail: str = ""
    """What came of it, or why it was refused."""
    by: str = "person"
    """Who asked: ``person``, or ``policy/<name>``."""
    file: str | None = None
    """The op file's name, where there was one."""
    stamp: str | None = None
    """Which state of that file (:attr:`rfflow.control.items.Identity.stamp`)."""
    chunk: int | None = None
    """The chunk after which it was applied."""
    clone: int | None = None
    """The number of the clone, where it made one."""
    is_warm: bool = False
    """Whether that began with its parent's weights."""
    slot: int | None = None
    """The slot where the run stood, where there are several."""
    time: str = field(default_factory=now)


class Journal:
    """An append-only file of :class:`Entry` lines that survives a crash at any moment."""

    def __init__(self, path: Path | str):
        self.path = Path(path)

    def append(self, *entries: Entry) -> None:
        """Write the entries; when this returns they are on the disk.

        Raises:
            OSError: if they cannot be written; then none of them is.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(asdict(entry), ensure_ascii=True) + "\n" for entry in entries)
        # Unbuffered: what found no room must not come when the file is closed.
        with open(self.path, "ab+", buffering=0, opener=_opener) as file:
            self._mend(file.fileno())
            size = os.fstat(file.fileno()).st_size
            try:
                left = memoryview(lines.encode("ascii"))
                while left:
                    left = left[file.write(left) :]
                os.fsync(file.fileno())
            except OSError:
                with contextlib.suppress(OSError):  # all of them or none: they will be written again
                    os.ftruncate(file.fileno(), size)
                raise

    def read(self) -> list[Entry]:
        """Return all entries; a line that a crash left torn is passed over with a warning.

        Raises:
            ConfigError: if the file is there and cannot be read; it may be no link.
        """
        try:
            with open(self.path, "rb", opener=_opener) as file:
                lines = file.read().splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be read: {error}.") from error
        known = {f.name for f in fields(Entry)}
        entries = []
        for number, line in enumerate(lines, 1):
            try:
                values = json.loads(line)
                entries.append(Entry(**{key: value for key, value in values.items() if key in known}))
            except (ValueError, TypeError, AttributeError):
                log.warning("%s line %d is not an entry and is passed over: %.80r", self.path, number, line)
        return entries

    def _mend(self, file: int) -> None:
        """Take off a last line that has no end; keep it where only its newline is missing."""
        size = os.fstat(file).st_size
        if size == 0 or os.pread(file, 1, size - 1) == b"\n":
            return
        content = os.pread(file, size, 0)
        torn = content[content.rfind(b"\n") + 1 :]
        try:
            json.loads(torn)
        except ValueError:
            log.warning("%s ends in a torn line, which is taken off: %.80r", self.path, torn)
            os.ftruncate(file, size - len(torn))
        else:
            os.write(file, b"\n")


def _opener(path: str, flags: int) -> int:
    """Open the file itself, never what a link in its place leads to."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


@dataclass(frozen=True)
class Past:
    """An op that was applied to a run."""

    verb: str
    run: int
    by: str
    """``person``, ``policy/halving``, or ``policy/rules/<rule>``."""
    chunk: int | None = None
    """Chunks that the run had done by then."""
