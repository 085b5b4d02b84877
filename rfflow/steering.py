"""Ops on their way from the control directory to the runs: planned whole, applied in order, answered once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rfflow.control.inbox import Inbox, Item
from rfflow.control.journal import Entry, Journal
from rfflow.control.ops import Clone, Delete, Op, Resume, Stop
from rfflow.control.overrides import expand
from rfflow.control.selection import select
from rfflow.control.status import RunStatus, Status, StatusFile
from rfflow.errors import OpError
from rfflow.runs import Experiment, Run, RunState
from rfflow.tracking.files import shown

if TYPE_CHECKING:
    from rfflow.engine import Engine


log = logging.getLogger(__name__)

_LAST_CALL = 2.0
"""Seconds, at most, that the end of an experiment waits for a file that is still being written."""


@dataclass(frozen=True)
class Step:
    """One op on one run, known to be possible once the steps before it are done."""

    op: Op
    run: int
    apply: Callable[[], str]
    """Does it, and says in a sentence what came of it."""


class Steering:
    """Answers the ops of one experiment, at moments when every run is at a boundary of its own."""

    def __init__(self, engine: Engine):
        spec, paths = engine.experiment.spec.control, engine.experiment.paths
        self.directory = Path(spec.dir) if spec.dir else paths.control
        self._engine = engine
        self._idle_timeout = spec.idle_timeout
        self._idle_until: float | None = None
        self._is_idle = False
        self._last_call: float | None = None
        self._inbox = Inbox(self.directory, paths.root, polling=spec.polling)
        self._journal = Journal(paths.ops)
        self._status = StatusFile(self.directory)

    def take_ops(self) -> None:
        """Apply or refuse every op that has come."""
        for item in self._inbox.scan():
            if self._answer(item):
                self._is_idle, self._last_call = False, None
        self._write_status()

    def wait(self) -> bool:
        """Sleep until there may be an op; return False when ``control.idle_timeout`` has passed without one."""
        if not self._is_idle:
            self._is_idle = True
            self._idle_until = None if self._idle_timeout is None else time.monotonic() + self._idle_timeout
            self._write_status()
            self._engine.tell("on_wait", control=self.directory, timeout=self._idle_timeout)
        left = None if self._idle_until is None else self._idle_until - time.monotonic()
        if left is not None and left <= 0:
            return self.wait_for_young_files()
        self._inbox.wait(left)
        return True

    def wait_for_young_files(self) -> bool:
        """Give a file that came in the last moment the time to be written; return whether there is one."""
        if not self._inbox.has_young_files:
            return False
        if self._last_call is None:
            self._last_call = time.monotonic() + _LAST_CALL
        if time.monotonic() >= self._last_call:
            return False
        self._inbox.wait(_LAST_CALL)
        return True

    def close(self) -> None:
        """Give the control directory back."""
        self._is_idle = False
        self._write_status()
        self._inbox.close()

    # --- one file -----------------------------------------------------------------------------------------------------

    def _answer(self, item: Item) -> bool:
        """Apply the ops of a file, or none of them; return whether they were applied."""
        try:
            if item.error is not None:
                raise item.error
            steps = Plan(self._engine).of(item.ops)
        except OpError as error:
            self._note(*self._refusals(item, str(error)))
            self._inbox.reject(item, str(error))
            return False
        told = []
        for step in steps:
            chunk = len(self._engine.experiment.run(step.run).chunks)
            detail = step.apply()
            self._note(self._entry(item, step.op, step.run, "applied", detail, chunk))
            run = self._engine.experiment.run(step.run)
            self._engine.tell("on_op", run=run, text=f"{detail} (person, {item.name}, after chunk {chunk})")
            told.append(detail)
        self._inbox.done(item, "\n".join(told))
        return True

    def _note(self, *entries: Entry) -> None:
        try:
            self._journal.append(*entries)
        except OSError as error:  # a full disk must not end the training; the answer beside the file says the same
            log.error("Cannot write %s: %s", self._journal.path, error)

    def _refusals(self, item: Item, reason: str) -> list[Entry]:
        if not item.ops:
            return [Entry("unknown", None, "refused", reason, file=item.name, stamp=item.identity.stamp)]
        return [self._entry(item, op, None, "refused", reason) for op in item.ops]

    def _entry(self, item: Item, op: Op, run: int | None, outcome: str, detail: str, chunk: int | None = None) -> Entry:
        assert outcome in ("applied", "refused")
        return Entry(
            op.verb,
            run,
            "applied" if outcome == "applied" else "refused",
            detail,
            file=item.name,
            stamp=item.identity.stamp,
            chunk=chunk,
        )

    def _write_status(self) -> None:
        experiment = self._engine.experiment
        runs = tuple(_status(run) for run in experiment.runs)
        self._status.write(Status(str(experiment.paths.root), runs, waiting=self._is_idle))


@dataclass(frozen=True)
class _View:
    """A run as it will be once the steps before are done."""

    number: int
    state: RunState
    metrics: dict[str, float]


class Plan:
    """The steps of one file. Making it changes nothing that anybody could see; clones are built and held back."""

    def __init__(self, engine: Engine):
        self._engine = engine
        experiment: Experiment = engine.experiment
        self._runs = {run.number: run for run in experiment.runs}
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
                    for run in select(op, self._views.values(), self._engine.experiment.spec.objective):
                        steps += self._steps(op, run)
                except OpError as error:
                    if len(ops) == 1:
                        raise
                    raise OpError(f"Op {number} of {len(ops)}: {error} Nothing of the file was applied.") from error
        except BaseException:
            for clone in self._clones:
                self._engine.discard(clone)
            raise
        return steps

    def _steps(self, op: Op, number: int) -> list[Step]:
        run = self._runs[number]
        match op:
            case Stop():
                return [self._step(op, run, RunState.STOPPED, self._stop)]
            case Resume():
                if not self._engine.holds(run):
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
        return Step(op, run.number, lambda: apply(run))

    def _clone(self, op: Clone, parent: Run, overrides: tuple[str, ...]) -> Step:
        number = max(self._runs) + 1
        clone = self._engine.make_clone(parent, overrides, number, warm_start=op.warm_start)
        self._clones.append(clone)
        self._runs[number] = clone
        self._views[number] = _View(number, clone.state, clone.metrics)

        def admit() -> str:
            self._engine.admit(clone)
            start = f" from its weights at step {parent.step}, chunk {clone.first_chunk + 1} first"
            how = start if op.warm_start else ""
            return f"Run {parent.number} was cloned as run {number}{how}: {' '.join(overrides) or 'no overrides'}."

        return Step(op, parent.number, admit)

    def _stop(self, run: Run) -> str:
        self._engine.stop(run)
        return f"Run {run.number} was stopped {_place(run)}."

    def _resume(self, run: Run) -> str:
        self._engine.resume(run)
        return f"Run {run.number} goes on {_place(run)}."

    def _delete(self, run: Run) -> str:
        self._engine.delete(run)
        return f"Run {run.number} was deleted {_place(run)}; what it saved stays in {shown(run.paths.checkpoints)}."


def _place(run: Run) -> str:
    chunks = f" of {len(run.plan)}" if run.plan is not None else ""
    return f"after chunk {len(run.chunks)}{chunks}, step {run.step}"


def _status(run: Run) -> RunStatus:
    return RunStatus(
        number=run.number,
        state=run.state.value,
        overrides=run.overrides,
        chunk=len(run.chunks),
        chunks=len(run.plan) if run.plan is not None else None,
        step=run.step,
        steps=run.plan.steps if run.plan is not None else None,
        metrics=run.metrics,
        parent=run.parent,
    )
