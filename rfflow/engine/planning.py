"""What the ops of one file come to, run by run: planned whole before anything is applied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from rfflow.confidential import redacted
from rfflow.control.ops import Clone, Delete, Op, Resume, Stop
from rfflow.control.overrides import expand
from rfflow.control.selection import select
from rfflow.errors import OpError
from rfflow.files import shown
from rfflow.runs.experiment import Experiment
from rfflow.runs.run import Run, RunState

if TYPE_CHECKING:
    from rfflow.engine.lifecycle import Lifecycle


@dataclass(frozen=True)
class Step:
    """One op on one run, known to be possible once the steps before it are done."""

    op: Op
    run: int
    apply: Callable[[], str]
    """Does it, and says in a sentence what came of it."""
    chunk: int
    """Chunks that the run has done."""
    clone: int | None = None
    """The number of the clone that it makes, if it makes one."""
    is_warm: bool = False
    """Whether that begins with its parent's weights."""


@dataclass(frozen=True)
class _View:
    """A run as it will be once the steps before are done."""

    number: int
    state: RunState
    metrics: dict[str, float]


class Plan:
    """The steps of one file. Making it changes nothing that anybody could see; clones are built and held back.

    Args:
        lifecycle: whose runs are meant.
        training: the run in the middle of its chunk, where the plan is made only to have its clones early.
    """

    def __init__(self, lifecycle: Lifecycle, training: Run | None = None):
        self._lifecycle = lifecycle
        experiment: Experiment = lifecycle.experiment
        self._training = training
        early = [] if training is None else lifecycle.cloner.early
        self._runs = {run.number: run for run in [*experiment.runs, *early]}
        self._views = {run.number: _View(run.number, run.state, run.metrics) for run in experiment.runs}
        self._clones: list[Run] = []

    def of(self, ops: Sequence[Op]) -> list[Step]:
        """Return the steps of all ops, in order.

        Raises:
            OpError: if one of them is not possible; the clones built so far are gone again.
        """
        steps = []
        try:
            for number, op in enumerate(ops, 1):
                try:
                    for run in select(op, self._views.values(), self._lifecycle.experiment.spec.objective):
                        steps += self._steps(op, run)
                except OpError as error:
                    if len(ops) == 1:
                        raise
                    raise OpError(f"Op {number} of {len(ops)}: {error} Nothing of the file was applied.") from error
        except BaseException:
            for clone in self._clones:
                self._lifecycle.discard(clone)
            raise
        return steps

    def _steps(self, op: Op, number: int) -> list[Step]:
        run = self._runs[number]
        match op:
            case Stop():
                return [self._step(op, run, RunState.STOPPED, self._stop)]
            case Resume():
                if not self._lifecycle.holds(run):
                    raise OpError(
                        f"Cannot resume run {number}: the experiment was closed while it was stopped, and its trainer "
                        "went with it. Clone it with warm_start: true to go on from its weights."
                    )
                return [self._step(op, run, RunState.RUNNING, self._resume)]
            case Delete():
                return [self._step(op, run, RunState.DELETED, self._delete)]
            case Clone():
                return [self._clone(op, run, overrides) for overrides in expand(op.overrides)]

    def _step(self, op: Op, run: Run, state: RunState, apply: Callable[[Run], str]) -> Step:
        self._views[run.number] = replace(self._views[run.number], state=state)
        return Step(op, run.number, lambda: apply(run), len(run.chunks))

    def _clone(self, op: Clone, parent: Run, overrides: tuple[str, ...]) -> Step:
        number = max(self._runs) + 1
        make = self._lifecycle.cloner.make
        if self._training is not None:
            make = partial(self._lifecycle.cloner.make_early, training=self._training)
        clone = make(parent, overrides, number, warm_start=op.warm_start)
        self._clones.append(clone)
        self._runs[number] = clone
        self._views[number] = _View(number, clone.state, clone.metrics)

        def admit() -> str:
            self._lifecycle.admit(clone)
            start = f" from its weights at step {parent.step}, chunk {clone.first_chunk + 1} first"
            how = start if op.warm_start else ""
            own = redacted(" ".join(overrides)) or "no overrides"
            return f"Run {parent.number} was cloned as run {number}{how}: {own}."

        return Step(op, parent.number, admit, len(parent.chunks), number, op.warm_start)

    def _stop(self, run: Run) -> str:
        self._lifecycle.stop(run)
        return f"Run {run.number} was stopped {_place(run)}."

    def _resume(self, run: Run) -> str:
        self._lifecycle.resume(run)
        return f"Run {run.number} goes on {_place(run)}."

    def _delete(self, run: Run) -> str:
        self._lifecycle.delete(run)
        return f"Run {run.number} was deleted {_place(run)}; what it saved stays in {shown(run.paths.checkpoints)}."


def apply(steps: Sequence[Step]) -> list[tuple[Step, str]]:
    """Apply the steps; return with each what came of it."""
    return [(step, step.apply()) for step in steps]


def _place(run: Run) -> str:
    chunks = f" of {len(run.plan)}" if run.plan is not None else ""
    return f"after chunk {len(run.chunks)}{chunks}, step {run.step}"
