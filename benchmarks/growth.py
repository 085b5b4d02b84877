"""A Fabric callback that notes at every boundary what the process has: memory, threads, open files."""

from __future__ import annotations

import json
import time
from pathlib import Path

import psutil

from benchmarks.footprint import anonymous_bytes
from rfflow.runs.experiment import Experiment


class Growth:
    """Writes ``[{"time", "memory", "threads", "files"}]``, a boundary each; bytes, and seconds since the epoch."""

    def __init__(self, path: str):
        self._path = Path(path)
        self._process = psutil.Process()
        self._samples: list[dict[str, float]] = []

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
        self._path.write_text(json.dumps(self._samples), encoding="utf-8")
