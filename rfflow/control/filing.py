"""Names and notes for answered op files: nothing is overwritten, and every name is one that a file system takes."""

from __future__ import annotations

import os
from pathlib import Path


def free_name(folder: Path, name: str, note_suffix: str) -> str:
    """Return the name, or the name with a number in it where an earlier file has it: ``stop.yaml``, ``stop.2.yaml``."""
    stem, dot, extension = name.rpartition(".")
    number, target = 1, name
    while os.path.lexists(folder / target) or os.path.lexists(folder / joined(target, note_suffix)):
        number += 1
        target = joined(stem, f".{number}{dot}{extension}")
    return target


def joined(stem: str, ending: str) -> str:
    """Join the two, cutting the stem where the name would be longer than file systems take (255 bytes)."""
    return os.fsdecode(os.fsencode(stem)[: 255 - len(os.fsencode(ending))]) + ending


def write_note(path: Path, text: str) -> None:
    """Write a note for people; what UTF-8 cannot hold is escaped."""
    path.write_text(text.rstrip("\n") + "\n", encoding="utf-8", errors="backslashreplace")


def printable(name: str) -> str:
    """Return a file name as a log takes it."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
