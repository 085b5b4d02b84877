"""What the answers of evaluations say so far: here, where all candidates are known, and not where they are answered."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from rfflow.control.selection import spans
from rfflow.errors import ConfigError
from rfflow.evals.estimates import running_metrics
from rfflow.evals.items import Item, read_items
from rfflow.evals.scoring import range_of
from rfflow.runs.events import Boundary
from rfflow.runs.experiment import Experiment
from rfflow.runs.run import Run
from rfflow.tracking.differences import shares_of

log = logging.getLogger(__name__)


class RunningEstimates:
    """Adds to the boundaries of evaluations what is estimated there."""

    def __init__(self, experiment: Experiment):
        self._experiment = experiment
        self._have_missing: set[int] = set()
        """Runs of which it was said that something is missing."""

    def added(self, run: Run, boundary: Boundary) -> Boundary:
        """Return the boundary with the metrics of all questions so far, and their intervals.

        Of a run that is trained it is the same.
        """
        spec = run.evaluation
        if spec is None or run.plan is None:
            return boundary
        items = read_items(run.paths.items)
        self._say_what_is_missing(run, items, boundary.step)
        found = running_metrics(
            items,
            boundary.step,
            run.plan.steps,
            run.plan.ends,
            (1 - spec.level) * shares_of(self._experiment.runs)[run.number],
            {name: range_of(node) for name, node in spec.metrics.items()},
            spec.interval,
        )
        logs = (*boundary.logs, (boundary.step, found))
        return replace(boundary, logs=logs, metrics={**found, **boundary.metrics})

    def _say_what_is_missing(self, run: Run, items: Mapping[int, Item], end: int) -> None:
        """Say once of a run that items have no score, and why the first has none."""
        errors = [error for place in range(end) if place in items and (error := items[place].error) is not None]
        if not errors or run.number in self._have_missing:
            return
        self._have_missing.add(run.number)
        log.warning(
            "Run %s: %s of %s items lack a score, and are counted as missing (eval_missing). The first: %s. All: %s",
            run.number,
            len(errors),
            end,
            errors[0] if len(errors[0]) <= 300 else f"{errors[0][:299]}…",
            run.paths.items,
        )


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
