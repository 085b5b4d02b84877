"""What a shell is offered that asks rfflow to complete a line, besides the overrides that Hydra knows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rfflow.files import shown
from rfflow.launch.usage import AFTERWARDS, COMMANDS, OF_CTL
from rfflow.results.opened import experiments_in

_LAST = 20
"""Experiments that are offered, the newest ones."""


def completions(line: str) -> tuple[list[str], bool]:
    """Return the words that may stand where a line ends, and whether overrides may stand there, too."""
    words = line.split(" ")
    while words and not words[0].endswith("rfflow"):  # python -m rfflow
        words = words[1:]
    _, *finished, last = [*words, ""] if len(words) < 2 else words
    finished = [word for word in finished if word]
    if not finished:
        found = [word for word in COMMANDS if last and word.startswith(last)]
        if last.startswith("resume="):
            return [f"resume={place}" for place in _experiments() if place.startswith(last.partition("=")[2])], False
        return found, True
    command = finished[0]
    if command == "ctl" and len(finished) == 1:
        return [word for word in OF_CTL if word.startswith(last)], False
    if command in AFTERWARDS and command != "ls" and not last.startswith("-"):
        return [place for place in _experiments() if place.startswith(last)], False
    return [], command not in COMMANDS


def _experiments() -> Sequence[str]:
    found = list(experiments_in(Path("outputs"))) if Path("outputs").is_dir() else []
    return [shown(path) for path in sorted(found, key=lambda path: path.stat().st_mtime)[-_LAST:]]
