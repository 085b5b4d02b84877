"""What a tracker has been told of runs, for one that cannot be asked: Weights & Biases offline, Trackio on a server."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Told:
    """A file, beside the experiment's, that grows by a line for each thing told.

    What follows a line torn off by a kill is read all the same.

    Args:
        path: where; it need not be there.
    """

    def __init__(self, path: Path):
        self._path = path
        self._reached: dict[tuple[int, str], int] = {}
        self._ops: dict[int, list[str]] = {}
        self._begun: set[int] = set()
        self._ended: set[int] = set()
        if path.is_file():
            for line in path.read_text().splitlines():
                self._read(line)
            self._append("")

    def has(self, run: int) -> bool:
        """Whether the tracker has a run of ours."""
        return run in self._begun

    def has_ended(self, run: int) -> bool:
        """Whether the tracker's run was ended."""
        return run in self._ended

    def ops(self, run: int) -> list[str]:
        """Return what ops have done to a run."""
        return self._ops.get(run, [])

    def unknown(self, run: int, metrics: Mapping[str, float], at: int) -> dict[str, float]:
        """Return the metrics that have not been told up to there yet: a run that goes on trains some steps again."""
        return {key: value for key, value in metrics.items() if self._reached.get((run, key), -1) < at}

    def begin(self, run: int) -> None:
        """Note that the tracker has a run."""
        self._note({"run": run})

    def log(self, run: int, metrics: Mapping[str, float], at: int) -> None:
        """Note metrics, at a step or at a chunk."""
        self._note({"run": run, "at": at, "metrics": list(metrics)})

    def end(self, run: int) -> None:
        """Note that the tracker's run was ended."""
        self._note({"run": run, "ended": True})

    def op(self, run: int, text: str) -> None:
        """Note what an op has done."""
        self._note({"run": run, "op": text})

    def _note(self, record: dict[str, Any]) -> None:
        self._take(record)
        self._append(json.dumps(record))

    def _append(self, line: str) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a") as file:
            file.write(line + "\n")

    def _read(self, line: str) -> None:
        try:
            self._take(json.loads(line))
        except (ValueError, KeyError, TypeError):
            return  # torn

    def _take(self, record: dict[str, Any]) -> None:
        run = record["run"]
        self._begun.add(run)
        for key in record.get("metrics", ()):
            self._reached[run, key] = max(self._reached.get((run, key), -1), record["at"])
        if record.get("ended"):
            self._ended.add(run)
        elif "metrics" in record:  # an op has taken it up again
            self._ended.discard(run)
        if "op" in record:
            self._ops.setdefault(run, []).append(record["op"])
