"""A Fabric callback that plays a person with a stopwatch: drops op files, and notes when each was applied."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rfflow.control.asking import drop
from rfflow.runs.chunks import ChunkResult
from rfflow.runs.experiment import Experiment
from rfflow.runs.run import Run, RunState


class Person:
    """Drops one op for every chunk of run 0, and writes ``{"stop": [seconds, ...], ...}`` at the end.

    Usually at its boundary: stop run 1 and resume it in turn, then clones, and at last delete run 1. The time is from
    the file's being in place to the op's being applied and told, all of it between two turns of the engine: the wait
    for the boundary, which is the chunk's length, is not in it.

    Or, with ``early``, a clone in the middle of each chunk. The time is from the boundary to its being applied.
    """

    def __init__(self, path: str, clones: int = 2, early: bool = False):
        self._path = Path(path)
        self._clones = clones
        self._is_early = early
        self._seconds: dict[str, list[float]] = defaultdict(list)
        self._dropped: str | None = None
        self._since = 0.0

    def on_log(self, experiment: Experiment, run: Run, metrics: Mapping[str, float], step: int) -> None:
        """Drop a clone op in the middle of a chunk."""
        assert run.plan is not None
        if self._is_early and not run.number and self._dropped is None and step not in run.plan.ends:
            self._drop(experiment, {"op": "clone", "run": 0, "overrides": [f"lr={step}e-6"]})

    def on_chunk_end(self, experiment: Experiment, run: Run, result: ChunkResult) -> None:
        """Drop the next op, or start the watch for the one that is there."""
        if self._is_early:
            self._since = time.perf_counter()
        elif not run.number and run.state is not RunState.COMPLETED:
            self._drop(experiment, self._next(experiment, run, result.chunk))

    def on_op(self, experiment: Experiment, run: Run, text: str) -> None:
        """Stop the watch."""
        if self._dropped is not None:
            self._seconds[self._dropped].append(time.perf_counter() - self._since)
            self._dropped = None

    def on_experiment_end(self, experiment: Experiment) -> None:
        """Write the times."""
        self._path.write_text(json.dumps(self._seconds), encoding="utf-8")

    def _next(self, experiment: Experiment, run: Run, chunk: int) -> dict[str, Any]:
        assert run.plan is not None
        left, other = len(run.plan) - 1 - chunk, experiment.run(1)
        if left == 1:
            return {"op": "delete", "run": 1}
        if left <= 1 + self._clones:
            return {"op": "clone", "run": 0, "overrides": [f"lr={left}e-5"]}
        return {"op": "resume" if other.state is RunState.STOPPED else "stop", "run": 1}

    def _drop(self, experiment: Experiment, document: dict[str, Any]) -> None:
        drop(experiment.paths.control, document)
        self._dropped, self._since = document["op"], time.perf_counter()
