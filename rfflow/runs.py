"""Runs, their states, their results, and every file name of an experiment in one place."""

from __future__ import annotations

import enum
import math
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rfflow.spec import ExperimentSpec, RunSpec


class RunState(enum.Enum):
    """``queued -> running <-> stopped -> completed | failed | deleted``."""

    QUEUED = "queued"
    RUNNING = "running"
    STOPPED = "stopped"
    COMPLETED = "completed"
    FAILED = "failed"
    DELETED = "deleted"

    @property
    def is_final(self) -> bool:
        """Whether the run will not train any more."""
        return self in (RunState.COMPLETED, RunState.FAILED, RunState.DELETED)

    @property
    def is_live(self) -> bool:
        """Whether the run still asks for the device."""
        return self in (RunState.QUEUED, RunState.RUNNING)


_LEGAL = {
    RunState.QUEUED: {RunState.RUNNING, RunState.STOPPED, RunState.FAILED, RunState.DELETED},
    RunState.RUNNING: {RunState.STOPPED, RunState.COMPLETED, RunState.FAILED, RunState.DELETED},
    RunState.STOPPED: {RunState.QUEUED, RunState.RUNNING, RunState.FAILED, RunState.DELETED},
    RunState.COMPLETED: {RunState.DELETED},
    RunState.FAILED: {RunState.DELETED},
    RunState.DELETED: set(),
}


class IllegalTransition(ValueError):
    """A run was asked to go where its state does not lead."""


@dataclass(frozen=True)
class ChunkPlan:
    """How a run's optimizer steps fall into chunks."""

    ends: tuple[int, ...]
    """The step (from 1) that ends each chunk, ascending; the last is the run's last step."""
    per_epoch: int
    """Chunks an epoch, C."""

    @property
    def steps(self) -> int:
        """All optimizer steps of the run."""
        return self.ends[-1]

    def __len__(self) -> int:
        return len(self.ends)


def chunk_ends(steps_per_epoch: int, chunks: int, total_steps: int, cycle: int = 1) -> tuple[int, ...]:
    """Return the steps that end a chunk.

    With S steps an epoch and C chunks these are the steps s where floor(s * C / S) grows; each epoch's end is one, and
    so is the run's last step, wherever ``max_steps`` puts it.

    Args:
        cycle: a chunk ends only where so many steps are done, or at the end of an epoch: a trainer that trains several
            steps on what it generated once must not be cut in between. S then counts cycles.

    Raises:
        ValueError: if there are more chunks than steps (or cycles) in an epoch.
    """
    cycles = -(-steps_per_epoch // cycle)
    if chunks > cycles:
        raise ValueError(f"{chunks} chunks do not fit into {cycles} {'steps' if cycle == 1 else 'cycles'} an epoch")
    ends = []
    for step in range(1, total_steps + 1):
        within = (step - 1) % steps_per_epoch + 1
        done = -(-within // cycle)
        is_whole = within % cycle == 0 or within == steps_per_epoch
        if (is_whole and done * chunks // cycles > (done - 1) * chunks // cycles) or step == total_steps:
            ends.append(step)
    return tuple(ends)


@dataclass(frozen=True)
class Answer:
    """What a model generated at a chunk's end, for people to read."""

    prompt: str
    answer: str
    reference: str
    """What the data says; empty where it says nothing."""


@dataclass(frozen=True)
class ChunkResult:
    """What a run had to show at the end of one chunk."""

    run: int
    chunk: int
    """Which chunk of the run, from 0, epochs counted through."""
    step: int
    """Optimizer steps done."""
    metrics: Mapping[str, float]
    """All that was known of the run there."""
    started: float
    """Seconds since the epoch at which the run got the device."""
    ended: float
    """... and at which it gave it back."""
    switch: float = 0.0
    """Seconds of that spent on restoring and saving the run's context."""
    evaluation: float = 0.0
    """... and on evaluating, as far as the trainer has logged it."""
    answers: tuple[Answer, ...] = ()
    """Some of what the model generated where ``evaluation.generate`` asks for it."""

    @property
    def seconds(self) -> float:
        """Time on the device."""
        return self.ended - self.started


class Run:
    """One configuration, from Hydra job to trained adapter."""

    def __init__(
        self, number: int, spec: RunSpec, overrides: tuple[str, ...], paths: RunPaths, parent: int | None = None
    ):
        self.number = number
        self.spec = spec
        self.overrides = overrides
        """Hydra overrides that set this run apart, for people to read."""
        self.paths = paths
        self.parent = parent
        """The run this one was cloned from."""
        self.first_chunk = 0
        """The chunk of the epoch that comes first; not 0 for a clone that started warm."""
        self.state = RunState.QUEUED
        self.plan: ChunkPlan | None = None
        """Known once the trainer has counted its steps."""
        self.step = 0
        self.metrics: dict[str, float] = {}
        """What is known of the run as it stands, by the trainer's own names: see :meth:`note` and :meth:`reach`."""
        self.logged_at: dict[str, int] = {}
        """The step at which each of the metrics was logged."""
        self.logs = 0
        """How often it has logged."""
        self.chunks: list[ChunkResult] = []
        self.error: BaseException | None = None

    def __repr__(self) -> str:
        return f"Run({self.number}, {self.state.value}, step {self.step})"

    @property
    def name(self) -> str:
        """The name of the run's directories."""
        return str(self.number)

    @property
    def label(self) -> str:
        """The overrides as one line."""
        return " ".join(self.overrides) or "(defaults)"

    @property
    def called(self) -> str:
        """What a sentence begins with: the number, and the overrides where they do not hide what it says."""
        return f"Run {self.number} ({self.label})" if len(self.label) <= 60 else f"Run {self.number}"

    @property
    def seconds(self) -> float:
        """Time spent on the device so far."""
        return sum(chunk.seconds for chunk in self.chunks)

    def note(self, metrics: Mapping[str, float], step: int) -> None:
        """Take in what was logged at a step. At step 0 nothing is trained: that says nothing of the configuration."""
        if step > 0:
            self.metrics.update(metrics)
            self.logged_at.update(dict.fromkeys(metrics, step))

    def reach(self, step: int, metrics: Mapping[str, float], running: Mapping[str, float] | None = None) -> None:
        """Come to a boundary, and forget what is older: nobody shall be ranked by it.

        An evaluation is of the weights at one step, so it must be of this one; what a trainer logs of its steps must
        be of the chunk that ends here.

        Args:
            step: optimizer steps done.
            metrics: what the boundary has found.
            running: what the trainer has counted since it logged last, for what it has not logged in the chunk.
        """
        began = self.chunks[-1].step if self.chunks else 0
        current = {
            name: value
            for name, value in self.metrics.items()
            if self.logged_at.get(name, 0) >= (step if name.startswith("eval_") else began + 1)
        }
        self.metrics = {**current, **{k: v for k, v in (running or {}).items() if k not in current}, **metrics}
        self.logged_at = dict.fromkeys(self.metrics, step)

    def move_to(self, state: RunState) -> None:
        """Change state.

        Raises:
            IllegalTransition: if the state machine has no such step.
        """
        if state not in _LEGAL[self.state]:
            allowed = ", ".join(sorted(s.value for s in _LEGAL[self.state])) or "nothing: it is final"
            raise IllegalTransition(
                f"Run {self.number} is {self.state.value} and cannot become {state.value}. Allowed: {allowed}."
            )
        self.state = state


class RunPaths:
    """Where one run keeps its files."""

    def __init__(self, root: Path):
        # A run may have a working directory of its own (hydra.job.chdir) and writes from there.
        self.root = root.absolute()
        self.log = self.root / "run.log"
        self.metrics = self.root / "metrics.jsonl"
        self.checkpoints = self.root / "checkpoints"
        self.final = self.checkpoints / "final"
        """The trained adapter (or model), as ``save_pretrained`` writes it."""
        self.weights = self.checkpoints / "last.safetensors"
        """The trained weights at the last boundary; clones that start warm begin from them."""
        self.start = self.checkpoints / "start.safetensors"
        """Of a clone that started warm: the weights it began with, whatever becomes of its parent."""


class ExperimentPaths:
    """Where an experiment keeps its files; the names are public."""

    def __init__(self, root: Path | str):
        self.root = Path(root)
        self.runs_table = self.root / "runs.csv"
        self.timeline = self.root / "timeline.json"
        self.timeline_picture = self.root / "timeline.png"
        self.tensorboard = self.root / "tb"
        self.control = self.root / "control"
        self.ops = self.root / "ops.jsonl"
        self.state = self.root / "experiment.json"

    def run(self, number: int) -> RunPaths:
        """Return the paths of a run that lies where it lies by default."""
        return RunPaths(self.root / "runs" / str(number))

    def relative(self, paths: RunPaths) -> str:
        """Return a run's directory as it stands in files: relative where it lies inside, so that all may be moved."""
        root = self.root.absolute()
        return str(paths.root.relative_to(root) if paths.root.is_relative_to(root) else paths.root)

    def found(self, number: int | str, directory: str | None) -> RunPaths:
        """Return the paths of a run whose directory stands in a file; a version before this one has left it out."""
        return RunPaths(self.root / directory) if directory else self.run(int(number))


@dataclass
class Experiment:
    """Everything callbacks may look at."""

    spec: ExperimentSpec
    paths: ExperimentPaths
    runs: list[Run] = field(default_factory=list)
    started: float = field(default_factory=time.time)
    """Seconds since the epoch."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Tells it from every other, wherever its directory goes."""

    def run(self, number: int) -> Run:
        """Return a run by its number.

        Raises:
            KeyError: if there is none.
        """
        for run in self.runs:
            if run.number == number:
                return run
        raise KeyError(number)

    def ranked(self) -> list[Run]:
        """Return the runs from best to worst by the objective."""
        return sorted(self.runs, key=lambda run: (*self.spec.objective.sort_key(run.metrics), run.number))

    def seconds_left(self) -> float:
        """Estimate the seconds until every live run is through, from the time of the chunks so far; NaN before any."""
        rates = {run.number: run.seconds / run.chunks[-1].step for run in self.runs if run.chunks}
        if not rates:
            return math.nan
        average = sum(rates.values()) / len(rates)
        return sum(
            rates.get(run.number, average) * (run.plan.steps - run.step)
            for run in self.runs
            if run.state.is_live and run.plan is not None
        )


class Callback:
    """The events of an experiment. Subclass it or write any class with some of these methods.

    Callbacks are named in the ``callbacks`` config group by ``_target_`` and called through ``Fabric.call``, which
    passes only the arguments that a method names. They are called while no run's context is active. One that raises
    costs a warning, and training goes on; ``rfflow.errors.EngineError`` is for one that means to end the experiment.
    """

    def on_experiment_start(self, experiment: Experiment) -> None:
        """Every run is built; none has trained."""

    def on_run_start(self, experiment: Experiment, run: Run) -> None:
        """A run is about to train for the first time; ``run.plan`` is known."""

    def on_chunk_start(self, experiment: Experiment, run: Run, chunk: int) -> None:
        """A run is about to train on a chunk."""

    def on_log(self, experiment: Experiment, run: Run, metrics: Mapping[str, float], step: int) -> None:
        """A trainer logged something (its own names: ``loss``, ``eval_loss``, ...), or rfflow evaluated."""

    def on_chunk_end(self, experiment: Experiment, run: Run, result: ChunkResult) -> None:
        """A run reached a chunk boundary and gave the device back."""

    def on_run_end(self, experiment: Experiment, run: Run) -> None:
        """A run completed or failed (``run.error``)."""

    def on_run_change(self, experiment: Experiment, run: Run) -> None:
        """An op stopped, resumed or deleted a run, or made it as a clone (``run.state``)."""

    def on_op(self, experiment: Experiment, run: Run, text: str) -> None:
        """An op on a run was applied; ``text`` says which, by whom and what came of it."""

    def on_wait(self, experiment: Experiment, control: Path, timeout: float | None) -> None:
        """Every live run is stopped, and the engine waits for an op in the directory, up to ``timeout`` seconds."""

    def on_exception(self, experiment: Experiment, error: BaseException) -> None:
        """The experiment ends by an exception; ``on_experiment_end`` will follow when it is closed in order."""

    def on_experiment_end(self, experiment: Experiment) -> None:
        """Nothing is left to train."""
