"""Whose files are these? Asked of the file system itself, since not every one keeps owners and modes as they are."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Marks:
    """What a file system writes on a file that this process makes in a directory for itself alone."""

    owner: int
    keeps_modes: bool
    """Whether others are kept out of it, as was asked; some mounts give every file one mode."""


def marks_in(directory: int) -> Marks:
    """Make a file in an open directory, look at it, and take it away again.

    The owner is who we are, but not on every mount: a server may write down one user for everybody.
    """
    name = f".rfflow-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory)
    except OSError:  # we may not write here, so nothing here is ours
        return Marks(os.geteuid(), True)
    try:
        status = os.fstat(file)
        return Marks(status.st_uid, status.st_mode & 0o077 == 0)
    finally:
        os.close(file)
        os.unlink(name, dir_fd=directory)


@contextlib.contextmanager
def held(name: Path | str, inside: int | None = None) -> Iterator[int]:
    """Hold a directory open by its descriptor, so that whatever takes its place is not the one that is written to.

    Args:
        name: its path, or its name in another.
        inside: the open directory that it lies in.

    Raises:
        OSError: if it is no directory; a link to one is none.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        directory = os.open(name, flags, dir_fd=inside)
    except OSError as error:
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISLNK(os.stat(name, dir_fd=inside, follow_symlinks=False).st_mode):
                link = "It is a symbolic link, which is not followed"
                raise NotADirectoryError(errno.ENOTDIR, link, str(name)) from error
        raise
    try:
        yield directory
    finally:
        os.close(directory)


def check_ours(directory: int, name: str) -> None:
    """Check that an open directory is this user's.

    Raises:
        PermissionError: if it is another's.
    """
    owner = os.fstat(directory).st_uid
    if owner not in (os.geteuid(), marks_in(directory).owner):
        raise PermissionError(errno.EPERM, f"It belongs to another user ({user(owner)})", name)


def user(number: int) -> str:
    """Return a user's name, or the number where nobody knows it."""
    import pwd

    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)
