"""Writing files that other programs read while we write them."""

from __future__ import annotations

import os
from pathlib import Path


def replace_text(path: Path, text: str) -> None:
    """Give a file new contents in one move: a reader sees the old text or the new, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.new")
    aside.unlink(missing_ok=True)
    try:
        with aside.open("x", encoding="utf-8", newline="") as file:  # "x" writes through no link that stands there
            file.write(text)
    except OSError:
        aside.unlink(missing_ok=True)  # a full disk needs the room
        raise
    os.replace(aside, path)


def shown(path: Path) -> str:
    """Return a path as people would type it: relative where it lies under the current directory."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
