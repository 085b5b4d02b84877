"""What lies in a control directory: op files, told apart by what they are and not by their names."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from rfflow.control.ops import Op
from rfflow.errors import OpError

DONE, REJECTED, STATUS = "done", "rejected", "status.yaml"


RESERVED = (STATUS, STATUS.replace(".yaml", ".yml"))
"""Names in the control directory that rfflow writes itself."""


def is_op_file(name: str) -> bool:
    """Whether a name in the control directory is one that is looked at."""
    lower = name.lower()  # stop.YAML: some editors and file systems write so
    is_yaml = lower.endswith((".yaml", ".yml")) or is_misnamed(name)
    return is_yaml and not name.startswith(".") and lower not in RESERVED


def is_misnamed(name: str) -> bool:
    """Whether an editor has hung its own ending on the name of an op file; the person waits for an answer."""
    return name.lower().endswith((".yaml.txt", ".yml.txt"))


@dataclass(frozen=True)
class Identity:
    """One state of one file: another file of the same name, or a change, makes another identity."""

    device: int
    inode: int
    size: int
    modified: int
    """Nanoseconds since the epoch."""

    @classmethod
    def of(cls, status: os.stat_result) -> Identity:
        """Read it from ``os.stat``."""
        if stat.S_ISDIR(status.st_mode):
            return cls(status.st_dev, status.st_ino, 0, 0)  # what happens inside a directory is not our business
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)

    @property
    def stamp(self) -> str:
        """The same as text, for the journal."""
        return f"{self.device}:{self.inode}:{self.size}:{self.modified}"


@dataclass(frozen=True)
class Item:
    """One op file as it was read: all of its ops, or what is wrong with it."""

    name: str
    identity: Identity
    ops: tuple[Op, ...] = ()
    """In the order of the documents."""
    error: OpError | None = None
    content: bytes = b""


KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link, which is not followed",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
