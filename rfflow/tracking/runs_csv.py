"""One row a run, for pandas and spreadsheets."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rfflow.errors import kind_of
from rfflow.files import replace_text
from rfflow.runs.experiment import Experiment
from rfflow.runs.run import Run

COLUMNS = (
    "run",
    "state",
    "parent",
    "overrides",
    "chunk",
    "chunks",
    "step",
    "steps",
    "seconds",
    "slot",
    "objective",
    "rank",
    "checkpoint",
    "directory",
    "error",
)


_STEP = re.compile(r"(?:checkpoint|step)-([0-9]+)")
"""A checkpoint of a trainer's own, or one of ours."""


class RunsTable:
    """Keep ``runs.csv`` current: written anew at every boundary and change of state.

    The columns are ``COLUMNS``, then one for every metric that any run has logged, in the order in which they were
    first seen; so the header only ever grows at its end. ``chunk`` and ``step`` count what is done, ``chunks`` and
    ``steps`` what there is to do, ``seconds`` is time on the device, ``slot`` the device where
    it trained last, ``objective`` the value that ranks the run, ``rank`` its place (1 is the best),
    ``checkpoint`` the trained adapter or else the newest checkpoint, ``directory`` the run's own, relative to the
    experiment's where it lies inside. A metric that has the name of one of these columns gets the prefix ``metric.``.
    """

    def __init__(self) -> None:
        self._metrics: dict[str, str] = {}
        """Names of metrics and of their columns, in order."""

    def on_experiment_start(self, experiment: Experiment) -> None:
        """Write every run as queued, or as it stood where the experiment goes on."""
        if any(run.chunks for run in experiment.runs):
            self._metrics = columns_before(experiment.paths.runs_table) | self._metrics
        self._write(experiment)

    def on_run_start(self, experiment: Experiment) -> None:
        """Show the run as running."""
        self._write(experiment)

    def on_chunk_end(self, experiment: Experiment) -> None:
        """Show what the chunk brought."""
        self._write(experiment)

    def on_run_end(self, experiment: Experiment) -> None:
        """Show the run as completed or failed."""
        self._write(experiment)

    def on_run_change(self, experiment: Experiment) -> None:
        """Show what an op did to a run."""
        self._write(experiment)

    def on_experiment_end(self, experiment: Experiment) -> None:
        """Write the last word."""
        self._write(experiment)

    def on_exception(self, experiment: Experiment) -> None:
        """Leave what is known; nothing, if the experiment never started."""
        if experiment.paths.runs_table.exists():
            self._write(experiment)

    def _write(self, experiment: Experiment) -> None:
        for run in experiment.runs:
            for name in run.metrics:
                self._metrics.setdefault(name, f"metric.{name}" if name in COLUMNS else name)
        text = io.StringIO()
        writer = csv.DictWriter(text, [*COLUMNS, *self._metrics.values()], restval="", lineterminator="\n")
        writer.writeheader()
        places = {run.number: place for place, run in enumerate(experiment.ranked(), start=1)}
        for run in experiment.runs:
            writer.writerow(_row(experiment, run, places[run.number]) | self._metric_cells(run.metrics))
        replace_text(experiment.paths.runs_table, text.getvalue())

    def _metric_cells(self, metrics: Mapping[str, float]) -> dict[str, Any]:
        return {self._metrics[name]: value for name, value in metrics.items()}


def columns_before(table: Path) -> dict[str, str]:
    """Return the metrics and their columns, in order, of a table that another process has written, if there is one."""
    try:
        with table.open(encoding="utf-8", newline="") as file:
            columns = next(csv.reader(file), [])
    except FileNotFoundError:
        return {}
    names = {f"metric.{name}": name for name in COLUMNS}
    return {names.get(column, column): column for column in columns if column not in COLUMNS}


def _row(experiment: Experiment, run: Run, place: int) -> dict[str, Any]:
    return {
        "run": run.number,
        "state": run.state.value,
        "parent": "" if run.parent is None else run.parent,
        "overrides": " ".join(run.overrides),
        "chunk": len(run.chunks),
        "chunks": "" if run.plan is None else len(run.plan),
        "step": run.step,
        "steps": "" if run.plan is None else run.plan.steps,
        "seconds": round(run.seconds, 3),
        "slot": run.chunks[-1].slot if run.chunks else "",
        "objective": experiment.spec.objective.value(run.metrics),
        "rank": place,
        "checkpoint": newest_checkpoint(run) or "",
        "directory": experiment.paths.relative(run.paths),
        "error": error_line(run) if run.error is not None else "",
    }


def newest_checkpoint(run: Run) -> Path | None:
    """Return the trained adapter if there is one, else the checkpoint with the highest step."""
    try:  # one look: at every boundary it is taken for every run
        names = os.listdir(run.paths.checkpoints)
    except OSError:
        return None
    if run.paths.final.name in names and run.paths.final.is_dir():
        return run.paths.final
    found = [match for name in names if (match := _STEP.fullmatch(name))]
    newest = max(found, key=lambda match: (int(match[1]), match[0]), default=None)
    return None if newest is None else run.paths.checkpoints / newest[0]


def error_line(run: Run) -> str:
    """Return what a run failed of as one line: the kind of error and the first line of its message."""
    message = str(run.error).strip().partition("\n")[0].strip()
    kind = "" if run.error is None else kind_of(run.error)
    return f"{kind}: {message}" if message else kind
