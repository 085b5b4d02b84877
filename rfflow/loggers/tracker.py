"""What loggers for MLflow, Weights & Biases and Trackio have in common: a run of theirs for each of ours.

A tracker is a viewer. Its calls are made from a thread of its own, so that a server that is slow or gone never holds
the training up; what it cannot take costs a warning. Only before anything trains is a mistake an error.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_fabric.loggers import Logger

from rfflow.confidential import redacted, without_secrets
from rfflow.errors import ConfigError, nearest
from rfflow.loggers.hparams import settings
from rfflow.runs.chunks import ChunkResult
from rfflow.runs.experiment import Experiment
from rfflow.runs.run import Run, RunState
from rfflow.tracking.labels import directory_name, metric_tag
from rfflow.tracking.reading import read_steps

log = logging.getLogger(__name__)

ARTIFACTS = ("adapter", "timeline")
_WAITING = 20_000
"""Calls that may wait; beyond that they are dropped."""
_GIVE_UP = 5
"""Calls that may fail one after the other, before no more are made."""


@dataclass(frozen=True)
class TrackedRun:
    """A run as it stood when a call was asked for."""

    number: int
    name: str
    """``3 lr=1e-4 r=8``"""
    settings: Mapping[str, bool | float | str]
    """The resolved configuration by dotted names, secrets masked."""
    state: str
    parent: int | None
    chunks_before: int
    """Chunks that its ancestors had trained, of a clone that started warm."""
    chunk: int
    """Chunks done."""
    step: int


@dataclass(frozen=True)
class Group:
    """The experiment."""

    name: str
    """Its recipe's: ``sft``."""
    directory: str
    """What tells it from others of that name: the time at which it began."""
    id: str
    root: Path


class Tracker(Logger):
    """Tell a tracker of every run: settings, metrics by step and by chunk, state, parent, ops, files.

    A subclass makes the calls, from one thread. Metrics are named ``train/loss`` and ``eval/loss``, and
    ``by_chunk/train/loss`` where the step is the chunk, the chunks of its ancestors counted in.

    Args:
        artifacts: which files to give it, of ``adapter`` (of every run that completes) and ``timeline``.
        patience: seconds, at most, that the end of the experiment waits for what the tracker has not taken yet.

    Raises:
        ConfigError: if something is wrong with them.
    """

    kind = "tracker"
    """What people call it."""

    def __init__(self, artifacts: Collection[str] = ("timeline",), patience: float = 30.0):
        for name in artifacts:
            if name not in ARTIFACTS:
                raise ConfigError(f"artifacts has {name!r}.{nearest(name, ARTIFACTS)} Allowed: {', '.join(ARTIFACTS)}.")
        self._artifacts = frozenset(artifacts)
        self._patience = patience
        self._experiment: Experiment | None = None
        self._calls: queue.Queue[Callable[[], None] | None] = queue.Queue(_WAITING)
        self._thread: threading.Thread | None = None
        self._known: set[int] = set()
        """Runs whose beginning was asked for."""
        self._started: set[int] = set()
        """Runs that have begun; the thread's own."""
        self._failures = 0
        """One after the other, up to now."""
        self._lost = 0

    # --- what a subclass does; called from the thread -----------------------------------------------------------------

    @abstractmethod
    def begin(self, group: Group, run: TrackedRun) -> None:
        """Begin a run, or go on with the one that an earlier process has begun."""

    @abstractmethod
    def log(self, run: TrackedRun, metrics: Mapping[str, float], step: int, chunk: int | None) -> None:
        """Log metrics at an optimizer step, or at a chunk where one is given."""

    @abstractmethod
    def tell(self, run: TrackedRun, op: str | None) -> None:
        """Show how a run stands now, and what an op has done to it, if one has."""

    @abstractmethod
    def keep(self, group: Group, run: TrackedRun | None, path: Path, name: str) -> None:
        """Keep a file or folder, of a run or of the experiment."""

    @abstractmethod
    def end(self, group: Group, run: TrackedRun) -> None:
        """End a run that will not train any more."""

    @abstractmethod
    def has_ended(self, group: Group, run: int) -> bool:
        """Whether a run was ended, by an earlier process, too."""

    @abstractmethod
    def close(self, group: Group, status: str) -> None:
        """Let go of everything; runs that have not ended are gone on with by another process, perhaps."""

    # --- Fabric logger ------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str | None:
        """Return the experiment's name, once it is known."""
        return self._experiment.spec.name if self._experiment else None

    @property
    def version(self) -> str | None:
        """Return what tells the experiment from others of its name."""
        return self._group.directory if self._experiment else None

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Do nothing: runs' metrics come by :meth:`on_log`, with their run."""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the runs' configurations are read from their specs."""

    def finalize(self, status: str) -> None:
        """Hand over what is left, and wait for it as long as :attr:`patience` says."""
        if self._experiment is None or self._thread is None:
            return
        picture, group = self._experiment.paths.timeline_picture, self._group
        if status == "success" and "timeline" in self._artifacts:
            for path in (picture, self._experiment.paths.timeline):
                if path.is_file():
                    self._ask(self.keep, group, None, path, path.name)
        with contextlib.suppress(queue.Full):
            self._calls.put_nowait(self._forgive)
        self._ask(self.close, group, status)
        deadline = time.monotonic() + self._patience
        with contextlib.suppress(queue.Full):
            self._calls.put(None, timeout=self._patience)
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._lost += self._calls.qsize()
            log.warning("%s has not taken everything within %s s; it is left at that", self.kind, self._patience)
        if self._lost:
            log.warning("%s has missed %d calls", self.kind, self._lost)
        self._thread, self._lost = None, 0

    # --- events -------------------------------------------------------------------------------------------------------

    def on_experiment_start(self, experiment: Experiment) -> None:
        """Begin with every run, or go on."""
        self._experiment, self._calls, self._failures = experiment, queue.Queue(_WAITING), 0
        self._known.clear()
        self._started.clear()
        self._thread = threading.Thread(target=self._work, args=(self._calls,), name=self.kind, daemon=True)
        self._thread.start()
        for run in experiment.runs:
            past = run.paths.metrics, tuple(run.chunks)
            if run.state.is_final:
                self._ask(self._see_off, self._group, self._seen(run, settings(run)), run.paths.final, *past)
                continue
            view = self._view(run)
            if run.step:
                self._ask(self._catch_up, view, *past)

    def on_run_start(self, run: Run) -> None:
        """Show that it runs."""
        self._ask(self.tell, self._view(run), None)

    def on_log(self, run: Run, metrics: Mapping[str, float], step: int) -> None:
        """Log what the trainer logged."""
        self._ask(self.log, self._view(run), _named(metrics), step, None)

    def on_chunk_end(self, run: Run, result: ChunkResult) -> None:
        """Log what is known of the run at the chunk's end, by the chunk."""
        self._ask(self._log_chunk, self._view(run), result)

    def on_run_change(self, run: Run) -> None:
        """Show what an op did to it; a clone begins."""
        view = self._view(run)
        self._ask(self.tell, view, None)
        if run.state is RunState.DELETED:
            self._ask(self.end, self._group, view)

    def on_op(self, run: Run, text: str) -> None:
        """Show an op."""
        self._ask(self.tell, self._view(run), redacted(text))

    def on_run_end(self, run: Run) -> None:
        """End it, with its adapter where that is wanted."""
        self._ask(self._end_with, self._group, self._view(run), run.paths.final)

    # --- the thread ---------------------------------------------------------------------------------------------------

    @property
    def _group(self) -> Group:
        assert self._experiment is not None, "on_experiment_start comes before anything else"
        root = self._experiment.paths.root.absolute()
        return Group(self._experiment.spec.name, root.name, self._experiment.id, root)

    def _view(self, run: Run) -> TrackedRun:
        """Return the run as it stands; before anything else of it, it begins."""
        view = self._seen(run, settings(run) if run.number not in self._known else {})
        if run.number not in self._known:
            self._known.add(run.number)
            self._ask(self._begin_once, self._group, view)
        return view

    def _seen(self, run: Run, configuration: Mapping[str, bool | float | str]) -> TrackedRun:
        return TrackedRun(
            run.number,
            directory_name(run.number, run.overrides),
            configuration,
            run.state.value,
            run.parent,
            run.chunks_before,
            len(run.chunks),
            run.step,
        )

    # Called from the thread.

    def _begin_once(self, group: Group, run: TrackedRun) -> None:
        """Begin it, unless it was begun to be seen off, before an op had a word on it."""
        if run.number not in self._started:
            self.begin(group, run)
            self._started.add(run.number)

    def _log_chunk(self, run: TrackedRun, result: ChunkResult) -> None:
        metrics = {f"by_chunk/{name}": value for name, value in _named(result.metrics).items()}
        self.log(run, metrics, result.step, run.chunks_before + result.chunk + 1)
        self.log(run, {"chunk": float(result.chunk + 1)}, result.step, None)

    def _end_with(self, group: Group, run: TrackedRun, final: Path) -> None:
        if "adapter" in self._artifacts and run.state == RunState.COMPLETED.value and final.is_dir():
            self.keep(group, run, final, "adapter")
        self.tell(run, None)
        self.end(group, run)

    def _catch_up(self, run: TrackedRun, file: Path, results: Sequence[ChunkResult]) -> None:
        """Log what an earlier process has had no time for, as it was killed; what the tracker has, it has once."""
        for line in read_steps(file):
            metrics = {name: value for name, value in line.items() if name not in ("step", "chunk")}
            if line["step"] <= run.step:
                self.log(run, _named(metrics), line["step"], None)
        for result in results:
            self._log_chunk(run, result)

    def _see_off(self, group: Group, run: TrackedRun, final: Path, file: Path, results: Sequence[ChunkResult]) -> None:
        """End a run that has ended in an earlier process, where that has had no time for it."""
        if not self.has_ended(group, run.number):
            self._begin_once(group, run)
            self._catch_up(run, file, results)
            self._end_with(group, run, final)

    def _ask(self, call: Callable[..., None], *args: Any) -> None:
        if self._thread is None:
            return  # nothing has begun: a failure before that is told by others
        try:
            self._calls.put_nowait(lambda: call(*args))
        except queue.Full:
            self._lose(None)

    def _work(self, calls: queue.Queue[Callable[[], None] | None]) -> None:
        while (call := calls.get()) is not None:
            if self._failures >= _GIVE_UP and call != self._forgive:
                self._lost += 1
                continue
            try:
                call()
            except Exception as error:  # a library's, which may be any
                self._lose(error)
            else:
                self._failures = 0

    def _forgive(self) -> None:
        """Come to the end: a server that is back by now takes the last word."""
        self._failures = 0

    def _lose(self, error: Exception | None) -> None:
        self._lost += 1
        self._failures += error is not None
        if self._lost == 1:
            said = "it is too slow" if error is None else f"{type(error).__name__}: {without_secrets(str(error))}"
            log.warning("%s fails, and all else goes on: %s", self.kind, said.partition("\n")[0][:500])
        if self._failures == _GIVE_UP:
            log.warning("%s has failed %d times in a row: nothing more is given to it", self.kind, _GIVE_UP)


def _named(metrics: Mapping[str, float]) -> dict[str, float]:
    found = {}
    for name, value in metrics.items():
        with contextlib.suppress(TypeError, ValueError):  # a trainer's callback may log whatever it likes
            found[metric_tag(name)] = float(value)
    return found
