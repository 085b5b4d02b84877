"""What comes of what slots tell: a chunk that is done, a run that has failed, a worker that is gone."""

from __future__ import annotations

import logging
from collections.abc import Callable

from rfflow.checkpointing.checkpointer import Checkpointer
from rfflow.checkpointing.disk import unsaved
from rfflow.engine.boundary import Boundaries
from rfflow.engine.estimating import RunningEstimates
from rfflow.engine.leaving import what_stands
from rfflow.engine.lifecycle import Lifecycle
from rfflow.engine.placement import Placement
from rfflow.errors import EngineError
from rfflow.runs.events import (
    Again,
    Boundary,
    Failed,
    Heard,
    Lost,
    Progress,
    Ready,
    Refused,
    Said,
    Saved,
    Unsaved,
    Up,
)
from rfflow.runs.run import Run

log = logging.getLogger(__name__)


class Hearing:
    """Takes the events of one experiment's slots.

    Args:
        lifecycle: moves runs from state to state.
        placement: knows what goes on where.
        checkpointer: learns what is on the disk.
        boundaries: publishes what runs log and where they have come to.
        estimates: carries the estimates of evaluations on.
        look_ahead: called in the middle of a run's chunk, between two steps.
        pause: called with a run that has no money left, and what there is to say of it.
    """

    def __init__(
        self,
        lifecycle: Lifecycle,
        placement: Placement,
        checkpointer: Checkpointer,
        boundaries: Boundaries,
        estimates: RunningEstimates,
        look_ahead: Callable[[Run], None],
        pause: Callable[[Run, str], None],
    ):
        self._experiment = lifecycle.experiment
        self._lifecycle = lifecycle
        self._placement = placement
        self._checkpointer = checkpointer
        self._boundaries = boundaries
        self._estimates = estimates
        self._look_ahead = look_ahead
        self._pause = pause

    def handle(self, heard: Heard) -> None:
        """Take an event that nobody in particular awaits.

        Raises:
            EngineError: if the experiment cannot go on.
        """
        if heard.run is None:
            self._handle_of_slot(heard)
            return
        run = self._experiment.run(heard.run)
        match heard.event:
            case Boundary() as boundary:
                boundary = self._estimates.added(run, boundary)
                self._boundaries.publish(run, boundary.logs)
                run.step = boundary.step
                if boundary.step > (run.chunks[-1].step if run.chunks else 0):
                    assignment = self._placement.end(heard.slot, run.number)
                    self._boundaries.come_to(run, assignment, boundary, self._placement.commit)
            case Progress() as progress:
                self._boundaries.publish(run, progress.logs)
                run.step = progress.step
                self._between_steps(run, heard.slot, progress)
            case Again(recomputes=recomputes):
                run.recomputes = run.recomputes or recomputes
                self._boundaries.again(run, self._checkpointer.newest(run))
            case Failed() as failed:
                self._placement.end(heard.slot, run.number)
                self._take_failure(run, failed)
            case Saved(step):
                self._checkpointer.sealed(run.number, step)
            case Unsaved(what, error):
                self._checkpointer.lost(run.number)
                if not isinstance(error, Exception):  # it ends the process, and not the disk
                    raise error
                raise unsaved(what, error, self._experiment.paths.root) from error
            case Ready(activations=activations):  # it was built once more, and trains now
                run.activations = activations or run.activations
            case Refused(error):
                self._placement.end(heard.slot, run.number)
                self._lifecycle.fail(run, error)
            case _:
                raise AssertionError(f"nobody asked for {heard}")

    def _handle_of_slot(self, heard: Heard) -> None:
        match heard.event:
            case Up(pid, device):
                log.info("Slot %s: %s, process %s", heard.slot, device, pid)
            case Said(logger, level, message):
                logging.getLogger(logger).log(level, "%s", message)
            case Lost() as lost:
                self._lose(heard.slot, lost)
            case _:
                raise AssertionError(f"nobody asked for {heard}")

    def _lose(self, slot: int, lost: Lost) -> None:
        """A worker is gone: its runs go on elsewhere, from what of them is on the disk."""
        there, doing = self._placement.lose(slot, lost)
        runs = [run for run in self._experiment.runs if run.number in there and not run.state.is_final]
        for run in runs:
            self._boundaries.again(run, self._checkpointer.fall_back(run))
        is_usable = slot in self._placement.usable
        self._experiment.given_up = self._experiment.slots - len(self._placement.usable)
        log.warning(
            "The worker of slot %s is lost%s: %s.%s", slot, doing, lost.reason, "" if is_usable else " It is given up."
        )
        for run in runs:
            if (failure := self._placement.losses.failure_of(run)) is not None:
                self._lifecycle.fail(run, failure)
        if not self._placement.usable:
            raise EngineError(
                f"Every slot was lost, the last one because {lost.reason}. {what_stands(self._experiment)}"
            )

    def _between_steps(self, run: Run, slot: int, progress: Progress) -> None:
        """Use a pause in the middle of a chunk."""
        if progress.is_left:
            self._placement.end(slot, run.number)
            self._placement.save_now(run)
            if progress.paused:
                self._pause(run, progress.paused)
        elif not self._placement.builds.is_building:  # a clone would get the same number as the one made ahead
            self._look_ahead(run)

    def _take_failure(self, run: Run, failed: Failed) -> None:
        if isinstance(failed.error, EngineError):
            raise failed.error
        if failed.is_disk_trouble:  # the others would fail by it too, one after the other
            raise unsaved(f"what run {run.number} saves", failed.error, self._experiment.paths.root) from failed.error
        self._lifecycle.fail(run, failed.error)
