"""Whose files are these? Asked of the file system itself, since not every one keeps owners and modes as they are."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
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


def stranger_among(directory: Path, names: Iterable[str]) -> int | None:
    """Return whose a directory or one of the files in it is, where it is not this user's; None where all is.

    A link counts as what it is and as what it leads to.
    """
    paths = [path for path in (directory, *(directory / name for name in names)) if os.path.lexists(path)]
    statuses = [status for path in paths for status in (path.lstat(), path.stat() if path.exists() else path.lstat())]
    strange = [status.st_uid for status in statuses if status.st_uid != os.geteuid()]
    if not strange:
        return None
    with held(directory) as opened:
        ours = marks_in(opened).owner
    return next((owner for owner in strange if owner != ours), None)


def is_open_to_others(file: Path) -> bool:
    """Whether others may write to a file, as far as its mode says something there: a group of one is no others."""
    status = file.stat()
    if not status.st_mode & (stat.S_IWOTH | (stat.S_IWGRP if _has_others(status.st_gid) else 0)):
        return False
    with held(file.parent) as directory:
        return marks_in(directory).keeps_modes


def _has_others(group: int) -> bool:
    """Whether a group is more than the one that many systems make for each user, who is alone in it."""
    import grp
    import pwd

    try:
        name, _, _, members = grp.getgrgid(group)
        me = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return True
    return name != me or bool(set(members) - {me})


def user(number: int) -> str:
    """Return a user's name, or the number where nobody knows it."""
    import pwd

    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)
