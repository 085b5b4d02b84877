"""Runs, their states, their results, and every file name of an experiment in one place."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from rfflow.config.spec import EvalSpec, EvaluationSpec, RunSpec
from rfflow.runs.activations import Activations
from rfflow.runs.chunks import ChunkPlan, ChunkResult
from rfflow.runs.owner import Owner
from rfflow.runs.paths import RunPaths
from rfflow.runs.ranking import Standing


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
class RunCard:
    """What stays the same of a run, which is all that whoever trains it has to know."""

    number: int
    spec: RunSpec
    called: str
    """How a sentence on it begins."""
    paths: RunPaths
    parent: int | None = None
    first_chunk: int = 0
    owner: Owner | None = None
    """What its files say of whose they are."""
    recomputes: bool = False
    """Whether the memory was not enough before, so that ``activation_checkpointing=auto`` means all layers."""


@dataclass(frozen=True)
class Turn:
    """A chunk that a run trains now."""

    slot: int
    since: float
    """Seconds since the epoch."""


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
        self.is_evaluation = isinstance(spec, EvalSpec)
        """Whether it answers questions, and trains nothing."""
        self.parent = parent
        """The run this one was cloned from."""
        self.first_chunk = 0
        """The chunk of the epoch that comes first; not 0 for a clone that started warm."""
        self.is_warm = False
        """Whether it is a clone that began with its parent's weights."""
        self.chunks_before = 0
        """Chunks that its ancestors had trained, of a clone that started warm."""
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
        self.turn: Turn | None = None
        """Where it trains now, if it does."""
        self.recomputes = False
        """Whether it ran out of memory and recomputes activations since, where it may choose."""
        self.activations: Activations | None = None
        """What it does with them; known once its trainer is built, if it trains a model of ours."""
        self.environ: Mapping[str, str] = {}
        """What loggers want it to find in its environment while it trains, besides what it has."""

    def __repr__(self) -> str:
        return f"Run({self.number}, {self.state.value}, step {self.step})"

    @property
    def evaluation(self) -> EvaluationSpec | None:
        """What it evaluates, if it does."""
        return self.spec.evaluation if isinstance(self.spec, EvalSpec) else None

    def card(self, owner: Owner | None = None) -> RunCard:
        """Return what a worker needs of it."""
        return RunCard(
            self.number, self.spec, self.called, self.paths, self.parent, self.first_chunk, owner, self.recomputes
        )

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

    @property
    def standing(self) -> Standing:
        """What ranks it."""
        if not self.is_evaluation:
            return Standing(self.number, self.metrics)
        has_ended_early = self.state in (RunState.STOPPED, RunState.FAILED, RunState.DELETED)
        past = tuple((chunk.step, chunk.metrics) for chunk in self.chunks) or ((0, {}),)
        return Standing(
            self.number, self.metrics, past, has_ended_early and (self.plan is None or self.step < self.plan.steps)
        )

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
