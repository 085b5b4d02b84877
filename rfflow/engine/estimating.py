"""What the answers of evaluations say so far: here, where all candidates are known, and not where they are answered."""

from __future__ import annotations

from dataclasses import replace

from rfflow.evals.estimates import running_metrics, share
from rfflow.evals.items import read_items
from rfflow.evals.scoring import range_of
from rfflow.runs.events import Boundary
from rfflow.runs.experiment import Experiment
from rfflow.runs.run import Run


class RunningEstimates:
    """Adds to the boundaries of evaluations what is estimated there."""

    def __init__(self, experiment: Experiment):
        self._experiment = experiment

    def added(self, run: Run, boundary: Boundary) -> Boundary:
        """Return the boundary with the metrics of all questions so far, and their intervals.

        Of a run that is trained it is the same.
        """
        spec = run.spec.evaluation
        if spec is None or run.plan is None:
            return boundary
        found = running_metrics(
            read_items(run.paths.items),
            boundary.step,
            run.plan.steps,
            run.plan.ends,
            self._share(run),
            {name: range_of(node) for name, node in spec.metrics.items()},
            spec.interval,
        )
        logs = (*boundary.logs, (boundary.step, found))
        return replace(boundary, logs=logs, metrics={**found, **boundary.metrics})

    def _share(self, run: Run) -> float:
        """Return the run's share of what may go wrong; of a clone, of what is kept for those that come later."""
        spec = run.spec.evaluation
        assert spec is not None
        candidates = [each for each in self._experiment.runs if each.is_evaluation]
        first = [each.number for each in candidates if each.parent is None]
        late = [each.number for each in candidates if each.parent is not None]
        foreseen = max(len(first), spec.candidates or 0)
        place = late.index(run.number) - (foreseen - len(first)) if run.parent is not None else -1
        return share(1 - spec.level, foreseen, place if place >= 0 else None)
