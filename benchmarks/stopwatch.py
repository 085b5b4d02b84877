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
from rfflow.worker.memory.memory import Memory
from rfflow.worker.memory.offload import RunTensors
from rfflow.worker.models.bases import Base
from rfflow.worker.training import session
from rfflow.worker.training.coroutine import TrainerCoroutine
from rfflow.worker.training.session import TrainingSession

TIMED: dict[str, tuple[Any, str]] = {
    "training": (TrainerCoroutine, "resume"),
    "resume": (TrainingSession, "advance"),
    "draft": (Drafts, "begin"),
    "saved": (Checkpointer, "write"),
    "waiting": (Writer, "wait"),
    "fingerprint": (Base, "check_untouched"),
    "holdings": (RunTensors, "measure"),
    "weights": (session, "trained_weights"),
    "finite": (session, "all_finite"),
    "last weights": (TrainingSession, "keep_weights"),
    "room": (Memory, "make_room"),
    "loggers": (Audience, "log"),
    "inbox": (Steering, "take_ops"),
    "scan": (Inbox, "scan"),
    "status": (StatusFile, "write"),
    "scheduler": (Scheduler, "next"),
    "loop": (Engine, "_step"),
}


class Stopwatch:
    """Writes ``{"times": {name: [seconds of each call]}, "cpu": {...}, "chunks": [{"seconds", "switch"}]}`` at the end.

    ``cpu`` is processor time of the thread that trains, which neither other programs nor the disk disturb.
    """

    def __init__(self, path: str):
        self._path = Path(path)
        self._times: dict[str, list[float]] = defaultdict(list)
        self._cpu: dict[str, list[float]] = defaultdict(list)
        self._chunks: list[dict[str, float]] = []
        for name, (owner, method) in TIMED.items():
            self._time(owner, method, lambda *args, name=name: name)
        self._time(Engine, "_call", lambda engine, hook: f"hook {hook}")

    def on_experiment_start(self) -> None:
        """Forget what came before the first turn."""
        self._times.clear()
        self._cpu.clear()

    def on_chunk_end(self, result: ChunkResult) -> None:
        """Keep the chunk."""
        self._chunks.append({"seconds": result.seconds, "switch": result.switch})

    def on_experiment_end(self, experiment: Experiment) -> None:
        """Write what was measured."""
        watched = {"times": self._times, "cpu": self._cpu, "chunks": self._chunks}
        self._path.write_text(json.dumps(watched), encoding="utf-8")

    def _time(self, owner: Any, method: str, name_of: Callable[..., str]) -> None:
        original = getattr(owner, method)
        times, cpu = self._times, self._cpu

        @functools.wraps(original)
        def timed(*args: Any, **kwargs: Any) -> Any:
            begun, used = time.perf_counter(), time.thread_time()
            try:
                return original(*args, **kwargs)
            finally:
                cpu[name_of(*args)].append(time.thread_time() - used)
                times[name_of(*args)].append(time.perf_counter() - begun)

        setattr(owner, method, timed)
