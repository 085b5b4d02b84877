"""Every answer of a run as a line of ``items.jsonl``, written the moment it is there: what is paid for is not lost."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

Score = float | None | tuple[float, float]
"""A number, a numerator and a denominator, or ``None`` where there is none."""


@dataclass(frozen=True)
class Item:
    """What came of one question."""

    position: int
    """In the order of the experiment, from 0."""
    id: str
    """The question's."""
    prompt: str
    """A hash of all that was sent."""
    answer: str | None = None
    found: tuple[str, ...] = ()
    """The documents that were found, best first."""
    scores: Mapping[str, Score] = field(default_factory=dict)
    usage: Mapping[str, float] = field(default_factory=dict)
    """Tokens, by what they are called."""
    latency: float = 0.0
    """Seconds; of a batch, the item's share."""
    cost: float = 0.0
    """What it has cost so far, with its judges, in USD."""
    paid: Mapping[str, float] = field(default_factory=dict)
    """Of that, what was paid since the last line of the same position, by section: ``generator``, ``metrics.judge``."""
    error: str | None = None
    """Why there is no answer, or no score."""
    is_kept: bool = False
    """Whether the answer is one of an earlier experiment (``generator.cache``), for which nothing was paid now."""


class ItemsFile:
    """The file of one run."""

    def __init__(self, path: Path):
        self._path = path
        self._file: TextIO | None = None

    def put(self, item: Item) -> None:
        """Append a line; once this returns, no end of this process takes it away."""
        if self._file is None:
            _cut_torn_line(self._path)
            self._file = self._path.open("a", encoding="utf-8")
        self._file.write(json.dumps(asdict(item), ensure_ascii=False) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Return once all lines are on the disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def read_items(path: Path) -> dict[int, Item]:
    """Return the last item at each position; a line that was not finished is none."""
    found: dict[int, Item] = {}
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return found
    for line in text.splitlines(keepends=True):
        if line.endswith(b"\n") and line.strip():
            item = _item(json.loads(line))
            found[item.position] = item
    return found


def paid_in(path: Path) -> dict[str, float]:
    """Return the USD that were paid, by section, also for answers that were asked for once more."""
    found: defaultdict[str, float] = defaultdict(float)
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return {}
    for line in lines:
        if line.endswith(b"\n") and line.strip():
            for section, usd in json.loads(line).get("paid", {}).items():
                found[section] += usd
    return dict(found)


def _item(content: dict[str, Any]) -> Item:
    scores = {name: tuple(score) if isinstance(score, list) else score for name, score in content["scores"].items()}
    return Item(**{**content, "scores": scores, "found": tuple(content["found"])})


def _cut_torn_line(path: Path) -> None:
    """Remove what a process was writing when it ended."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
