"""A Fabric callback that notes at every boundary what the process has: memory, threads, open files."""

from __future__ import annotations

import functools
import json
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.footprint import anonymous_bytes
from rfflow.runs.events import Boundary
from rfflow.runs.experiment import Experiment
from rfflow.worker.training.coroutine import TrainerCoroutine


class Growth:
    """Writes ``{"samples": [{"time", "memory", "threads", "files"}], "start": ..., "between": [...]}``.

    A sample a boundary: bytes, and seconds since the epoch. The others are in processor time, which other programs
    disturb least: the process's up to its first step, and of the thread that trains between two chunks.
    """

    def __init__(self, path: str):
        self._path = Path(path)
        self._process = psutil.Process()
        self._samples: list[dict[str, float]] = []
        self._between: list[float] = []
        self._start, self._left = 0.0, -1.0
        self._watch()

    def _watch(self) -> None:
        resume = TrainerCoroutine.resume

        @functools.wraps(resume)
        def watched(coroutine: TrainerCoroutine, reply: Any = None) -> Any:
            if self._left >= 0:
                self._between.append(time.thread_time() - self._left)
            self._left, pause = -1.0, resume(coroutine, reply)
            if isinstance(pause, Boundary):
                self._left = time.thread_time()
            return pause

        TrainerCoroutine.resume = watched  # type: ignore[method-assign]

    def on_experiment_start(self) -> None:
        """All runs are built."""
        self._start = time.process_time()

    def on_chunk_end(self) -> None:
        """Take a sample."""
        self._samples.append(
            {
                "time": time.time(),
                "memory": anonymous_bytes(),
                "threads": self._process.num_threads(),
                "files": self._process.num_fds(),
            }
        )

    def on_experiment_end(self, experiment: Experiment) -> None:
        """Write them."""
        found = {"samples": self._samples, "start": self._start, "between": self._between}
        self._path.write_text(json.dumps(found), encoding="utf-8")
