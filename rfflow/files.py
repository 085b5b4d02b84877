"""Writing files that other programs read while we write them."""

from __future__ import annotations

import os
import shlex
import sys
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


def typed_command() -> str:
    """Return how rfflow was started, for commands that people are told: ``rfflow`` or ``python -m rfflow``."""
    program = Path(sys.argv[0])
    if program.stem == "rfflow":  # the console script
        return "rfflow"
    if program.name == "__main__.py" and program.parent.name == "rfflow" and sys.orig_argv[:1]:
        return f"{shlex.quote(sys.orig_argv[0])} -m rfflow"
    return "python -m rfflow"  # a notebook, or an app of somebody's own
