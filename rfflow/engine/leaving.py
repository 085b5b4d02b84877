"""The end of an experiment that has not come to its end: what can be saved is, and what stands is said."""

from __future__ import annotations

import logging

from rfflow.checkpointing.disk import resume_command
from rfflow.engine.placement import Placement
from rfflow.runs.experiment import Experiment
from rfflow.runs.run import RunState

log = logging.getLogger(__name__)


def save_unsaved(experiment: Experiment, placement: Placement) -> None:
    """Save what suspended runs have trained since their last checkpoint, as far as that can be."""
    try:
        for run in experiment.runs:
            placement.wait_until_saved(run)
            at_boundary = run.chunks and run.step == run.chunks[-1].step
            if run.state is RunState.RUNNING and at_boundary and placement.builds.holds(run):
                placement.save_now(run)
                placement.leave_device(run)  # so that the next one finds room there
    except Exception:
        log.exception("Not everything could be saved; the last checkpoints stand")


def farewell(experiment: Experiment) -> str:
    """Return the last words where everything is left as it is."""
    return f"Left at once. {what_stands(experiment)}"


def what_stands(experiment: Experiment) -> str:
    """Return how one goes on with an experiment that has ended too early, or begins again."""
    if not experiment.paths.state.exists():
        return "Nothing is saved that could be gone on with: give the command again."
    has_saved = any(run.chunks for run in experiment.runs)
    words = "What was saved stands: " if has_saved else "Nothing had been trained. To begin again: "
    return words + resume_command(experiment.paths.root)
