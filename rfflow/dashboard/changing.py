"""Files that others write while we read, read again only where they have changed."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

Stamp = tuple[int, int, int]


def stamp_of(path: Path) -> Stamp | None:
    """Return what tells one state of a file from another; None where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


class Cached:
    """A file's parsed content, kept as long as the file stays the same."""

    def __init__(self, path: Path, parse: Callable[[str], Any]):
        self.path = path
        self._parse = parse
        self._seen: Stamp | None = None
        self._value: Any = None

    def get(self) -> Any:
        """Return the content; None where there is no file, what was last read where it cannot be read."""
        stamp = stamp_of(self.path)
        if stamp is None:
            self._seen, self._value = None, None
        elif stamp != self._seen:
            with contextlib.suppress(OSError, ValueError):  # the next look tries again
                self._value, self._seen = self._parse(self.path.read_text(encoding="utf-8")), stamp
        return self._value


class Lines:
    """A growing file of JSON lines, read from where the last look ended."""

    def __init__(self, path: Path):
        self._path = path
        self._offset = 0
        self._inode: int | None = None

    def new(self) -> list[dict[str, Any]]:
        """Return the lines that have come since; one without its end waits for it, one that is no JSON is left out."""
        stamp = stamp_of(self._path)
        if stamp is None or stamp[:2] == (self._inode, self._offset):
            return []
        if stamp[0] != self._inode or stamp[1] < self._offset:
            self._offset = 0
        self._inode = stamp[0]
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except OSError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        found = []
        for line in whole.splitlines():
            try:
                value = json.loads(line)
            except ValueError:
                continue
            found += [value] if isinstance(value, dict) else []
        return found
