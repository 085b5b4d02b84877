"""Names and notes for answered op files: nothing is overwritten, and every name is one that a file system takes."""

from __future__ import annotations

import contextlib
import os
import re
import stat

_MADE_UP = re.compile(r"\d{8}-\d{6}-\d{9}-[a-z]+(-tab)?\.yaml")


def maker_of(name: str) -> str | None:
    """Return which program has named an op file, so that the name says nothing to people; None where a person has."""
    if (found := _MADE_UP.fullmatch(name)) is None:
        return None
    return "rfflow ctl" if found[1] is None else "the tab"


def place_for(folder: int, name: str, note_suffix: str, note: str) -> str:
    """Return the name, or the name with a number in it where an earlier file has it: ``stop.yaml``, ``stop.2.yaml``.

    A note that stands alone and says the same was written by a process that died before it could move the file: its
    place is the one to take, so that a file has the same name in the end however often its process died.

    Args:
        folder: the open directory (:func:`rfflow.control.belonging.held`).
        name: what it would be called.
        note_suffix: what the note's name has behind it.
        note: what the note will say.
    """
    stem, dot, extension = name.rpartition(".")
    number, target = 1, name
    while _is_there(folder, target) or not _can_have(folder, joined(target, note_suffix), note_suffix, note):
        number += 1
        target = joined(stem, f".{number}{dot}{extension}")
    return target


def _is_there(folder: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _can_have(folder: int, name: str, suffix: str, note: str) -> bool:
    """Whether a note may be written there: nothing is there, or the same note without a file that it belongs to."""
    if not _is_there(folder, name):
        return True
    if not stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
        return False
    with open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder), "rb") as there:
        if there.read(len(_note(note)) + 1) != _note(note):
            return False
    return all(joined(other, suffix) != name for other in os.listdir(folder))


def joined(stem: str, ending: str) -> str:
    """Join the two, cutting the stem where the name would be longer than file systems take (255 bytes)."""
    return os.fsdecode(os.fsencode(stem)[: 255 - len(os.fsencode(ending))]) + ending


def write_note(folder: int, name: str, text: str) -> None:
    """Write a note for people, whole or not at all; what UTF-8 cannot hold is escaped."""
    write_whole(folder, name, _note(text))


def write_whole(folder: int, name: str, content: bytes) -> None:
    """Write a file aside and give it its name: whoever sees the name sees all of it.

    Nothing that stands under either name is written through, be it a link or another name of somebody's file.
    """
    aside = joined(f".{name}", ".new")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(aside, dir_fd=folder)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(aside, flags, 0o666, dir_fd=folder), "wb") as file:
        file.write(content)
    os.replace(aside, name, src_dir_fd=folder, dst_dir_fd=folder)


def _note(text: str) -> bytes:
    return (text.rstrip("\n") + "\n").encode("utf-8", "backslashreplace")


def printable(name: str) -> str:
    """Return a file name as a log and a terminal take it: nothing in it is a command to them, nor a line of its own."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
