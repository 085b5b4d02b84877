"""What the answers of evaluations say so far: here, where all candidates are known, and not where they are answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rfflow.control.selection import spans
from rfflow.errors import ConfigError
from rfflow.evals.estimates import running_metrics
from rfflow.evals.items import read_items
from rfflow.evals.scoring import range_of
from rfflow.runs.events import Boundary
from rfflow.runs.experiment import Experiment
from rfflow.runs.run import Run
from rfflow.tracking.differences import shares_of


class RunningEstimates:
    """Adds to the boundaries of evaluations what is estimated there."""

    def __init__(self, experiment: Experiment):
        self._experiment = experiment

    def added(self, run: Run, boundary: Boundary) -> Boundary:
        """Return the boundary with the metrics of all questions so far, and their intervals.

        Of a run that is trained it is the same.
        """
        spec = run.evaluation
        if spec is None or run.plan is None:
            return boundary
        found = running_metrics(
            read_items(run.paths.items),
            boundary.step,
            run.plan.steps,
            run.plan.ends,
            (1 - spec.level) * shares_of(self._experiment.runs)[run.number],
            {name: range_of(node) for name, node in spec.metrics.items()},
            spec.interval,
        )
        logs = (*boundary.logs, (boundary.step, found))
        return replace(boundary, logs=logs, metrics={**found, **boundary.metrics})


def check_baselines(runs: Sequence[Run]) -> None:
    """Check that the runs with which others are to be compared are evaluations.

    Raises:
        ConfigError: naming those that there are.
    """
    there = [run.number for run in runs if run.is_evaluation]
    for run in runs:
        baseline = run.evaluation.baseline if run.evaluation is not None else None
        if baseline is not None and baseline not in there:
            raise ConfigError(
                f"stats.baseline is {baseline}, and no evaluation has that number. Allowed: {spans(there)}."
            )
