"""A Fabric callback that plays a person with a stopwatch: drops op files, and notes when each was applied."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from rfflow.control.ctl import drop
from rfflow.runs import ChunkResult, Experiment, Run, RunState


class Person:
    """At every boundary of run 0 drops one op, and writes ``{"stop": [seconds, ...], ...}`` at the end.

    The time is from the file's being in place to the op's being applied and told, all of it between two turns of the
    engine: the wait for the boundary, which is the chunk's length, is not in it.
    """

    def __init__(self, path: str, clones: int = 2):
        self._path = Path(path)
        self._clones = clones
        self._seconds: dict[str, list[float]] = defaultdict(list)
        self._dropped: tuple[str, float] | None = None

    def on_chunk_end(self, experiment: Experiment, run: Run, result: ChunkResult) -> None:
        """Drop the next op: stop run 1 and resume it in turn, then clone, and at last delete run 1."""
        if run.number or run.state is RunState.COMPLETED:
            return
        assert run.plan is not None
        left, other = len(run.plan) - 1 - result.chunk, experiment.run(1)
        document: dict[str, Any]
        if left == 1:
            document = {"op": "delete", "run": 1}
        elif left <= 1 + self._clones:
            document = {"op": "clone", "run": 0, "overrides": [f"lr={left}e-5"]}
        elif other.state is RunState.STOPPED:
            document = {"op": "resume", "run": 1}
        else:
            document = {"op": "stop", "run": 1}
        drop(experiment.paths.control, document)
        self._dropped = (document["op"], time.perf_counter())

    def on_op(self, experiment: Experiment, run: Run, text: str) -> None:
        """Stop the watch."""
        if self._dropped is not None:
            verb, dropped = self._dropped
            self._seconds[verb].append(time.perf_counter() - dropped)
            self._dropped = None

    def on_experiment_end(self, experiment: Experiment) -> None:
        """Write the times."""
        self._path.write_text(json.dumps(self._seconds), encoding="utf-8")
