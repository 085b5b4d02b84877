"""Runs on their way in: built up to their next step before they take part, and given their past where they have one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rfflow.checkpointing.checkpointer import Checkpointer
from rfflow.checkpointing.experiment_file import RunRecord
from rfflow.engine.building import start_of
from rfflow.engine.metrics_check import MetricsCheck
from rfflow.engine.placement import Placement
from rfflow.runs.events import Ready, WarmStart
from rfflow.runs.forecast import Forecast
from rfflow.runs.run import Run, RunState
from rfflow.scheduling.scheduler import Scheduler


class Opening:
    """Lets runs into one experiment.

    Args:
        checkpointer: knows what runs of an earlier process have saved.
        placement: has trainers built.
        scheduler: whom they join.
        metrics_check: learns what they will log.
    """

    def __init__(
        self, checkpointer: Checkpointer, placement: Placement, scheduler: Scheduler, metrics_check: MetricsCheck
    ):
        self._checkpointer = checkpointer
        self._placement = placement
        self._scheduler = scheduler
        self._metrics_check = metrics_check
        self._past: dict[int, tuple[RunRecord, Path | None]] = {}
        """Of runs of an earlier process, and the checkpoints they go on from."""

    def is_restored(self, run: Run) -> bool:
        """Whether the run has its past."""
        return run.number in self._past

    def restore(self, run: Run, record: RunRecord) -> Path | None:
        """Give a run its past back; return the checkpoint that it goes on from, if it does from one."""
        checkpoint = self._checkpointer.restore(run, record)
        self._past[run.number] = (record, checkpoint)
        return checkpoint

    def prepare(self, runs: Sequence[Run], at_once: int = 1) -> list[Forecast]:
        """Build runs up to their next steps.

        Args:
            runs: which ones.
            at_once: how many of them at a time, each on a slot of its own.

        Returns:
            What those that are live will ask of servers.

        Raises:
            Exception: what the first of them is refused with.
        """
        forecasts = []
        for start in range(0, len(runs), at_once):
            for run in runs[start : start + at_once]:
                self._placement.builds.ask_to_prepare(run, *self._begins_with(run))
            for run in runs[start : start + at_once]:
                ready = self._placement.builds.ready(run)
                self._note_ready(run, ready)
                forecasts += [ready.forecast] if run.state.is_live else []
        return forecasts

    def let_in(self, run: Run) -> None:
        """Let a run that was built take part, where it was in the order of turns."""
        assert run.plan is not None
        record, _ = self._past.get(run.number, (None, None))
        ahead, home = None if record is None else record.ahead, self._placement.builds.homes.get(run.number)
        self._scheduler.add(run.number, len(run.plan), len(run.chunks), ahead, home)
        if run.state is RunState.STOPPED:
            self._scheduler.stop(run.number)

    def _begins_with(self, run: Run) -> tuple[WarmStart | None, Path | None]:
        """Return what a run began with, and where it goes on from."""
        _, checkpoint = self._past.get(run.number, (None, None))
        return start_of(run), checkpoint

    def _note_ready(self, run: Run, ready: Ready) -> None:
        run.plan, run.activations = ready.plan, ready.activations
        self._metrics_check.note(run.number, ready.expected)
        if run.state is RunState.STOPPED:
            self._placement.leave_device(run)
