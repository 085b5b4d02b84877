"""Which experiments a logdir has."""

from __future__ import annotations

import os
from pathlib import Path

DEPTH = 4
"""How far below a logdir experiments are looked for."""


def find(logdir: str) -> dict[str, Path]:
    """Return the experiments of a logdir by name: it may be one, above some, or the ``tb/`` (or a run's) of one."""
    root = Path(os.path.abspath(os.path.expanduser(logdir)))
    for up in (root, *root.parents[:2]):
        if _is_experiment(up) and (up == root or (up / "tb") in (root, root.parent)):
            return {up.name: up}
    found: dict[str, Path] = {}
    level = [root]
    for _ in range(DEPTH):
        level = [child for folder in level for child in _folders(folder)]
        found |= {child.relative_to(root).as_posix(): child for child in level if _is_experiment(child)}
        level = [child for child in level if child not in found.values()]
    return found


def _is_experiment(folder: Path) -> bool:
    return (folder / "experiment.json").is_file() or (folder / "control" / "status.json").is_file()


def _folders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []
