"""What becomes of a run: stopped, resumed, deleted, admitted, failed, ended. Ops ask for it, and so does the loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from rfflow.checkpointing.checkpointer import Checkpointer
from rfflow.checkpointing.experiment_file import OpOutcome
from rfflow.control.journal import Past
from rfflow.engine.cloning import Cloner
from rfflow.engine.placement import Placement
from rfflow.runs.experiment import Experiment
from rfflow.runs.run import Run, RunState, Turn
from rfflow.scheduling.scheduler import Assignment, Scheduler
from rfflow.tracking.arguments import ArgumentsFile


class Lifecycle:
    """Moves the runs of one experiment from state to state; a run is at a boundary of its own when it is moved.

    Args:
        experiment: whose runs these are.
        scheduler: says who trains.
        checkpointer: keeps their states.
        placement: has their trainers.
        cloner: makes clones.
        tell: calls a hook of every Fabric callback.
    """

    def __init__(
        self,
        experiment: Experiment,
        scheduler: Scheduler,
        checkpointer: Checkpointer,
        placement: Placement,
        cloner: Cloner,
        tell: Callable[..., None],
    ):
        self.experiment = experiment
        self.cloner = cloner
        self.tell = tell
        self._scheduler = scheduler
        self._checkpointer = checkpointer
        self._placement = placement
        self._arguments = ArgumentsFile(experiment.paths.arguments)
        self.imagined: Callable[[], Sequence[tuple[int, Past]]] = lambda: checkpointer.imagined
        """Returns what a policy would have done in a dry run."""

    def save(self, answer: OpOutcome | None = None, *, is_finished: bool = False) -> None:
        """Write ``experiment.json``; once this returns, an op file that was answered is answered for good."""
        self._arguments.write(self._placement.builds.arguments)
        self._checkpointer.imagined = self.imagined()
        self._checkpointer.write(self._scheduler.ahead, answer, is_finished=is_finished)

    # --- ops ----------------------------------------------------------------------------------------------------------

    def stop(self, run: Run) -> None:
        """Take a run off the device; its state is kept, and it can be resumed."""
        self._placement.save_now(run)
        run.move_to(RunState.STOPPED)
        self._scheduler.stop(run.number)
        self._placement.leave_device(run)
        self.tell("on_run_change", run=run)

    def resume(self, run: Run) -> None:
        """Let a stopped run go on with its next chunk."""
        run.move_to(RunState.RUNNING if run.chunks else RunState.QUEUED)
        self._scheduler.resume(run.number)
        self.tell("on_run_change", run=run)

    def holds(self, run: Run) -> bool:
        """Whether the run's trainer is there; not any more once the experiment has been closed."""
        return self._placement.builds.holds(run)

    def delete(self, run: Run) -> None:
        """Give a run up; what it has saved stays."""
        run.move_to(RunState.DELETED)
        self._scheduler.remove(run.number)
        self._placement.builds.give_up(run)
        self.tell("on_run_change", run=run)

    def admit(self, run: Run) -> None:
        """Let a clone that was made take part."""
        assert run.plan is not None
        if run.is_warm:
            self._checkpointer.started_warm(run)
        self.experiment.runs.append(run)
        self._scheduler.add(run.number, chunks=len(run.plan), home=self._placement.builds.homes.get(run.number))
        self.tell("on_run_change", run=run)

    def discard(self, run: Run) -> None:
        """Forget a clone that was made and not admitted."""
        self.cloner.drop(run)

    def slot_of(self, number: int) -> int | None:
        """Return the slot where a run's trainer stands, where there are several."""
        return self._placement.builds.homes.get(number) if self.experiment.slots > 1 else None

    def leading(self) -> set[int]:
        """Return the runs that have had more turns than another that takes part."""
        return self._scheduler.leading()

    # --- what happens while training ----------------------------------------------------------------------------------

    def begin(self, group: Sequence[Assignment]) -> None:
        """Let some runs, or one, have a slot for their next chunks."""
        runs = [self.experiment.run(assignment.run) for assignment in group]
        for run, assignment in zip(runs, group, strict=True):
            if run.state is RunState.QUEUED:
                run.move_to(RunState.RUNNING)
                self.tell("on_run_start", run=run)
            run.turn = Turn(assignment.slot, time.time())
            self.tell("on_chunk_start", run=run, chunk=assignment.chunk)
        self._placement.begin(group, runs)

    def chunk_done(self, run: Run, assignment: Assignment, *, is_last: bool) -> None:
        """The slot is free; a run whose trainer has ended takes part no more."""
        self._scheduler.finish(assignment)
        if is_last:
            self._scheduler.remove(run.number)  # it may have ended early, by a callback of the user's

    def complete(self, run: Run) -> None:
        """The run is through."""
        run.move_to(RunState.COMPLETED)

    def fail(self, run: Run, error: BaseException) -> None:
        """A run raised; the others go on."""
        run.error = error
        run.move_to(RunState.FAILED)
        self._scheduler.remove(run.number)
        self.end(run)
        self.save()  # behind the end, which everybody must have heard of

    def end(self, run: Run) -> None:
        """Let go of a run that will not train any more."""
        self._placement.wait_until_saved(run)
        self._placement.builds.give_up(run)
        self.tell("on_run_end", run=run)

    def clear_away(self, run: Run) -> None:
        """Remove the checkpoints that nobody needs of a run that is through; call it behind :meth:`save`."""
        self._checkpointer.ended(run)
