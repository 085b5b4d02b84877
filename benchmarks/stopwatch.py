"""A Fabric callback that times rfflow's own functions from inside a real experiment.

``+callbacks.stopwatch={_target_: benchmarks.stopwatch.Stopwatch, path: ...}`` on the command line is all it takes.
"""

from __future__ import annotations

import functools
import json
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rfflow.checkpointing.checkpointer import Checkpointer
from rfflow.checkpointing.writer import Writer
from rfflow.control.inbox import Inbox
from rfflow.control.status import StatusFile
from rfflow.engine.callbacks import Audience
from rfflow.engine.engine import Engine
from rfflow.engine.steering import Steering
from rfflow.runs.chunks import ChunkResult
from rfflow.runs.experiment import Experiment
from rfflow.scheduling.scheduler import Scheduler
from rfflow.worker.drafts import Drafts
from rfflow.worker.memory.offload import RunTensors
from rfflow.worker.models.bases import Base
from rfflow.worker.training.coroutine import TrainerCoroutine
from rfflow.worker.training.session import TrainingSession

TIMED: dict[str, tuple[type, str]] = {
    "training": (TrainerCoroutine, "resume"),
    "resume": (TrainingSession, "advance"),
    "draft": (Drafts, "begin"),
    "saved": (Checkpointer, "write"),
    "waiting": (Writer, "wait"),
    "fingerprint": (Base, "check_untouched"),
    "holdings": (RunTensors, "measure"),
    "loggers": (Audience, "log"),
    "inbox": (Steering, "take_ops"),
    "scan": (Inbox, "scan"),
    "status": (StatusFile, "write"),
    "scheduler": (Scheduler, "next"),
    "loop": (Engine, "_step"),
}


class Stopwatch:
    """Writes ``{"times": {name: [seconds of each call]}, "chunks": [{"seconds", "switch"}]}`` when nothing is left."""

    def __init__(self, path: str):
        self._path = Path(path)
        self._times: dict[str, list[float]] = defaultdict(list)
        self._chunks: list[dict[str, float]] = []
        for name, (owner, method) in TIMED.items():
            self._time(owner, method, lambda *args, name=name: name)
        self._time(Engine, "_call", lambda engine, hook: f"hook {hook}")

    def on_experiment_start(self) -> None:
        """Forget what came before the first turn."""
        self._times.clear()

    def on_chunk_end(self, result: ChunkResult) -> None:
        """Keep the chunk."""
        self._chunks.append({"seconds": result.seconds, "switch": result.switch})

    def on_experiment_end(self, experiment: Experiment) -> None:
        """Write what was measured."""
        self._path.write_text(json.dumps({"times": self._times, "chunks": self._chunks}), encoding="utf-8")

    def _time(self, owner: type, method: str, name_of: Callable[..., str]) -> None:
        original = getattr(owner, method)
        times = self._times

        @functools.wraps(original)
        def timed(*args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                times[name_of(*args)].append(time.perf_counter() - begun)

        setattr(owner, method, timed)
