"""differences.csv: each evaluation against the leading one, question by question."""

from __future__ import annotations

import csv
import io

from rfflow.evals.comparison import Candidate, ahead, leader
from rfflow.evals.estimates import scores_of
from rfflow.evals.items import read_items
from rfflow.evals.scoring import range_of
from rfflow.files import replace_text
from rfflow.runs.experiment import Experiment
from rfflow.runs.run import Run, RunState

COLUMNS = ("run", "against", "metric", "questions", "difference", "low", "high", "missing")


class Differences:
    """Keep ``differences.csv`` current: by how much each evaluation exceeds the leading one in what ranks the runs.

    Both answer the same questions, so what is hard for both falls out, and the limits are far nearer to each other than
    those of either. They hold together, at all planned looks and for all candidates. A question without a score counts
    as whatever speaks against a decision.
    """

    def on_chunk_end(self, experiment: Experiment, run: Run) -> None:
        """Compare anew."""
        if run.is_evaluation:
            write(experiment)


def write(experiment: Experiment) -> None:
    """Write the file, where two evaluations have something to compare."""
    metric = experiment.spec.objective.metric
    name = metric.removeprefix("eval_")
    there = {run.number: found for run in experiment.runs if (found := candidate(run, name)) is not None}
    first = leader(there, experiment.spec.objective.direction)
    if first is None or len(there) < 2:
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for number, each in there.items():
        if number == first:
            continue
        gap = ahead(each, there[first], len(there))
        writer.writerow([number, first, metric, gap.n, gap.value, gap.low, gap.high, gap.missing])
    replace_text(experiment.paths.differences, text.getvalue())


def candidate(run: Run, metric: str) -> Candidate | None:
    """Return what is known of a run by one of its metrics; ``None`` where that is nothing."""
    spec = run.spec.evaluation if run.is_evaluation else None
    if spec is None or run.plan is None or not run.chunks or metric not in spec.metrics:
        return None
    if run.state is RunState.DELETED:
        return None
    scores = scores_of(read_items(run.paths.items), metric, run.chunks[-1].step)
    return Candidate(run.number, scores, run.plan.ends, range_of(spec.metrics[metric]), spec.level)
