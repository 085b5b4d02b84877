"""Names and notes for answered op files: nothing is overwritten, and every name is one that a file system takes."""

from __future__ import annotations

import os
from pathlib import Path


def place_for(folder: Path, name: str, note_suffix: str, note: str) -> str:
    """Return the name, or the name with a number in it where an earlier file has it: ``stop.yaml``, ``stop.2.yaml``.

    A note that stands alone and says the same was written by a process that died before it could move the file: its
    place is the one to take, so that a file has the same name in the end however often its process died.
    """
    stem, dot, extension = name.rpartition(".")
    number, target = 1, name
    while os.path.lexists(folder / target) or not _can_have(folder / joined(target, note_suffix), note_suffix, note):
        number += 1
        target = joined(stem, f".{number}{dot}{extension}")
    return target


def _can_have(path: Path, suffix: str, note: str) -> bool:
    """Whether a note may be written there: nothing is there, or the same note without a file that it belongs to."""
    if not os.path.lexists(path):
        return True
    if not path.is_file() or path.read_bytes() != _note(note):
        return False
    return all(joined(name, suffix) != path.name for name in os.listdir(path.parent))


def joined(stem: str, ending: str) -> str:
    """Join the two, cutting the stem where the name would be longer than file systems take (255 bytes)."""
    return os.fsdecode(os.fsencode(stem)[: 255 - len(os.fsencode(ending))]) + ending


def write_note(path: Path, text: str) -> None:
    """Write a note for people, whole or not at all; what UTF-8 cannot hold is escaped."""
    write_whole(path, _note(text))


def write_whole(path: Path, content: bytes) -> None:
    """Write a file aside and give it its name: whoever sees the name sees all of it."""
    aside = path.with_name(joined(f".{path.name}", ".new"))
    aside.write_bytes(content)
    os.replace(aside, path)


def _note(text: str) -> bytes:
    return (text.rstrip("\n") + "\n").encode("utf-8", "backslashreplace")


def printable(name: str) -> str:
    """Return a file name as a log takes it."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
