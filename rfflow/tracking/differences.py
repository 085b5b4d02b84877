"""differences.csv: each evaluation against the leading one and a chosen one, question by question."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable

from rfflow.evals.comparison import Against, Candidate, ahead, are_comparable, beyond, leader
from rfflow.evals.estimates import scores_of, shares
from rfflow.evals.items import read_items
from rfflow.evals.scoring import range_of
from rfflow.files import replace_text
from rfflow.runs.experiment import Experiment
from rfflow.runs.run import Run, RunState

COLUMNS = (
    *("run", "against", "as", "metric", "questions", "difference", "low", "high", "missing"),
    *("beyond_low", "beyond_high"),
)


class Differences:
    """Keep ``differences.csv`` current: by how much each evaluation exceeds others in what ranks the runs.

    The others are the leading one (``as`` is ``leader``) and ``stats.baseline`` (``baseline``). All answer the same
    questions, so what is hard for both falls out, and the limits are far nearer to each other than those of either. Of
    each kind all hold together, at all planned looks and for all candidates. A question without a score counts as
    whatever speaks against a decision. ``beyond_low`` and ``beyond_high``, when both have answered everything, are for
    questions that are not in the set.
    """

    def on_chunk_end(self, experiment: Experiment, run: Run) -> None:
        """Compare anew."""
        if run.is_evaluation:
            write(experiment)

    def on_run_change(self, experiment: Experiment, run: Run) -> None:
        """Compare without a run that was deleted."""
        if run.is_evaluation:
            write(experiment)


def write(experiment: Experiment) -> None:
    """Write the file, where two evaluations have something to compare."""
    metric = experiment.spec.objective.metric
    parts, name = shares_of(experiment.runs), metric.removeprefix("eval_")
    there = {
        run.number: found
        for run in experiment.runs
        if (found := candidate(run, name, parts.get(run.number, 0.0))) is not None
    }
    first = leader(there, experiment.spec.objective.direction)
    if first is None or len(there) < 2:
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    others: tuple[tuple[int | None, str, Against], ...] = (
        (first, "leader", "any"),
        (_baseline(experiment), "baseline", "one"),
    )
    for other, role, against in others:
        if other not in there:
            continue
        for number, each in there.items():
            if number != other and are_comparable(each, there[other]):
                gap, further = ahead(each, there[other], against), beyond(each, there[other], against)
                ends = [] if further is None else [further.low, further.high]
                row = [number, other, role, metric, gap.n, gap.value, gap.low, gap.high, gap.missing, *ends]
                writer.writerow([*row, *[""] * (len(COLUMNS) - len(row))])
    replace_text(experiment.paths.differences, text.getvalue())


def candidate(run: Run, metric: str, share: float) -> Candidate | None:
    """Return what is known of a run by one of its metrics; ``None`` where that is nothing.

    Args:
        run: the run.
        metric: as it is called in its configuration.
        share: its own of what may go wrong, from :func:`shares_of`.
    """
    spec = run.evaluation
    if spec is None or run.plan is None or not run.chunks or metric not in spec.metrics:
        return None
    if run.state is RunState.DELETED:
        return None
    items, end = read_items(run.paths.items), run.chunks[-1].step
    ids = tuple(items[position].id if position in items else "" for position in range(end))
    bounds = range_of(spec.metrics[metric])
    return Candidate(run.number, scores_of(items, metric, end), run.plan.ends, bounds, spec.level, share, ids)


def shares_of(runs: Iterable[Run]) -> dict[int, float]:
    """Return how much of what may go wrong falls to each evaluation."""
    specs = {run.number: (run.parent, run.evaluation) for run in runs if run.is_evaluation}
    foreseen = [spec.candidates or 0 for _, spec in specs.values() if spec is not None]
    return shares({number: parent for number, (parent, _) in specs.items()}, max(foreseen, default=0))


def _baseline(experiment: Experiment) -> int | None:
    specs = [run.evaluation for run in experiment.runs]
    return next((spec.baseline for spec in specs if spec is not None and spec.baseline is not None), None)
