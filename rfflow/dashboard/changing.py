"""Files that others write while we read, read again only where they have changed."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

Stamp = tuple[int, int, int]


def stamp_of(path: Path) -> Stamp | None:
    """Return what tells one state of a file from another; None where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


@contextlib.contextmanager
def open_inside(path: Path, inside: Path | None) -> Iterator[BinaryIO]:
    """Open an ordinary file to read it.

    Args:
        path: the file; a pipe, which would have us wait for ever, is none.
        inside: of an experiment of another user its directory: links in it could lead to files that only we may read.

    Raises:
        OSError: if it cannot be opened, or lies elsewhere.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "It is no ordinary file", str(path))
        if inside is not None:
            real, root = Path(os.path.realpath(path)), os.path.realpath(inside)
            # What lies there is to be what was opened: the link may lead elsewhere by now.
            if not real.is_relative_to(root) or not os.path.samestat(os.lstat(real), status):
                raise PermissionError(errno.EPERM, "A link leads out of an experiment of another user", str(path))
        yield file


def text_of(path: Path, inside: Path | None) -> str:
    """Return a file's text, as :func:`open_inside` opens it.

    Raises:
        OSError: as there.
        ValueError: if it is no UTF-8.
    """
    with open_inside(path, inside) as file:
        return file.read().decode("utf-8")


class Cached:
    """A file's parsed content, kept as long as the file stays the same."""

    def __init__(self, path: Path, parse: Callable[[str], Any], inside: Path | None = None):
        self.path = path
        self._parse = parse
        self._inside = inside
        self._seen: Stamp | None = None
        self._value: Any = None

    def get(self) -> Any:
        """Return the content; None where there is no file, what was last read where it cannot be read."""
        stamp = stamp_of(self.path)
        if stamp is None:
            self._seen, self._value = None, None
        elif stamp != self._seen:
            with contextlib.suppress(OSError, ValueError):  # the next look tries again
                self._value, self._seen = self._parse(text_of(self.path, self._inside)), stamp
        return self._value


class Lines:
    """A growing file of JSON lines, read from where the last look ended."""

    def __init__(self, path: Path, inside: Path | None = None):
        self._path = path
        self._inside = inside
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
            with open_inside(self._path, self._inside) as file:
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
