"""An experiment on disk, whether it goes on elsewhere or is over, read as it stands; nothing is written."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rfflow.checkpointing import experiment_file
from rfflow.checkpointing.experiment_file import RunRecord, SavedExperiment
from rfflow.config.spec import ExperimentSpec, Objective
from rfflow.control.ownership import living_owner
from rfflow.errors import ConfigError, WorkerError, nearest
from rfflow.files import shown, typed_command
from rfflow.runs.chunks import ChunkResult
from rfflow.runs.experiment import Experiment
from rfflow.runs.paths import ExperimentPaths, RunPaths
from rfflow.runs.run import Run, RunState
from rfflow.tracking.runs_csv import COLUMNS


@dataclass(frozen=True)
class Opened:
    """What was read."""

    experiment: Experiment
    """As callbacks see it: runs with their states, metrics and plans."""
    saved: SavedExperiment
    is_living: bool
    """Whether a process trains in it now."""

    @property
    def root(self) -> Path:
        """The experiment's directory."""
        return self.experiment.paths.root

    def config(self, number: int) -> dict[str, Any]:
        """Return a run's configuration as it may be shown."""
        record = self.saved.run(number)
        return dict(json.loads(record.config)) if record is not None else {}


def open_experiment(root: Path | str) -> Opened:
    """Read an experiment's directory.

    Raises:
        ConfigError: if there is none, naming what is near.
    """
    paths = ExperimentPaths(Path(root).expanduser())
    saved = experiment_file.read(paths.state)
    if saved is None:
        raise ConfigError(f"{shown(paths.root)} {_why_not(paths.root)}")
    rows = _rows(paths.runs_table)
    runs = [_run(record, rows.get(record.number, {}), paths) for record in saved.runs]
    spec = ExperimentSpec(saved.name, saved.objective or Objective())
    slots = 1 + max((chunk.slot for run in runs for chunk in run.chunks), default=0)
    experiment = Experiment(spec, paths, runs, saved.started, slots, saved.id)
    is_living = living_owner(paths.root) is not None or living_owner(paths.control) is not None
    return Opened(experiment, saved, is_living)


def experiments_in(folder: Path) -> Iterator[Path]:
    """Give the directories of experiments in a folder, itself included, up to three levels down."""
    for pattern in ("", "*/", "*/*/", "*/*/*/"):
        for path in sorted(folder.glob(f"{pattern}experiment.json")):
            yield path.parent


def unlisted_in(folder: Path) -> Iterator[Path]:
    """Give the directories of experiments that kept no ``experiment.json`` (``checkpoint.every=null``)."""
    for pattern in ("", "*/", "*/*/", "*/*/*/"):
        for path in sorted(folder.glob(f"{pattern}runs.csv")):
            if not path.with_name("experiment.json").exists():
                yield path.parent


def last_change(paths: ExperimentPaths) -> float:
    """Return when an experiment was saved last, in seconds since the epoch."""
    try:
        return paths.state.stat().st_mtime
    except OSError:
        return time.time()


def _why_not(root: Path) -> str:
    if not root.exists():
        beside = [path.name for path in root.parent.glob("*/") if (path / "experiment.json").exists()]
        return f"does not exist.{nearest(root.name, beside, 1)} All there are: {typed_command()} ls"
    inside = [shown(path) for path in experiments_in(root)]
    if inside:
        return f"is not an experiment. In it: {', '.join(inside[-3:])}"
    if (root / "runs.csv").exists():
        return "has no experiment.json: it was run with checkpoint.every=null, which leaves nothing to open."
    return f"is not an experiment: it has no experiment.json. All there are: {typed_command()} ls"


def _rows(table: Path) -> dict[int, dict[str, str]]:
    """Return the rows of runs.csv by run; none where it cannot be read."""
    try:
        with table.open(encoding="utf-8", newline="") as file:
            return {int(row["run"]): row for row in csv.DictReader(file)}
    except (OSError, ValueError, KeyError, csv.Error):
        return {}


def _run(record: RunRecord, row: Mapping[str, str], paths: ExperimentPaths) -> Run:
    spec: Any = None  # is composed anew where an experiment goes on; nobody trains here
    run = Run(record.number, spec, record.overrides, RunPaths(record.path(paths.root)), record.parent)
    run.is_evaluation = run.paths.items.exists()
    run.state, run.plan = record.state, record.plan
    run.first_chunk, run.chunks_before = record.first_chunk, record.chunks_before
    run.recomputes, run.activations = record.recomputes, record.activations
    if record.error is not None:
        run.error = WorkerError(*record.error)
    run.chunks, run.metrics = list(record.chunks), dict(record.metrics)
    if not run.chunks and (done := _whole(row.get("chunk"))):
        run.chunks = _chunks(run, done, row)
        run.metrics = _metrics(row)
    run.step = run.chunks[-1].step if run.chunks else 0
    return run


def _chunks(run: Run, done: int, row: Mapping[str, str]) -> list[ChunkResult]:
    """Return the chunks of a run that has not ended, of which the table tells how many and how long in all."""
    try:
        each = float(row.get("seconds") or 0) / done
    except ValueError:
        each = 0.0
    ends = run.plan.ends if run.plan else tuple(range(1, done + 1))
    slot = _whole(row.get("slot"))
    return [ChunkResult(run.number, n, ends[min(n, len(ends) - 1)], {}, 0.0, each, slot=slot) for n in range(done)]


def _metrics(row: Mapping[str, str]) -> dict[str, float]:
    found = {}
    for name, text in row.items():
        if name in COLUMNS or not text:
            continue
        try:
            found[name.removeprefix("metric.")] = float(text)
        except ValueError:
            continue
    return found


def _whole(text: str | None) -> int:
    return int(text) if text and text.isdigit() else 0


def chosen_run(opened: Opened, number: int | None = None) -> Run:
    """Return the run of that number, or the best one that has completed.

    Raises:
        ConfigError: if there is no such run, or none that left a model.
    """
    experiment, root = opened.experiment, shown(opened.root)
    if number is not None:
        run = next((run for run in experiment.runs if run.number == number), None)
        if run is None:
            there = ", ".join(str(run.number) for run in experiment.runs)
            raise ConfigError(f"{root} has no run {number}. Runs: {there}.")
        if not run.paths.final.is_dir():
            raise ConfigError(
                f"Run {number} of {root} is {run.state.value} and left no model in {shown(run.paths.final)}. "
                "A run leaves one when it completes (checkpoint.keep has final)."
            )
        return run
    ranked = [run for run in experiment.ranked() if run.state is RunState.COMPLETED and run.paths.final.is_dir()]
    if not ranked:
        counts = ", ".join(sorted(f"run {run.number} is {run.state.value}" for run in experiment.runs)) or "no runs"
        raise ConfigError(f"{root} has no completed run with a model: {counts}.")
    return ranked[0]
