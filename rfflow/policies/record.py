"""An experiment that is over, read back for a replay."""

from __future__ import annotations

import csv
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from rfflow.checkpointing import experiment_file
from rfflow.checkpointing.experiment_file import SavedExperiment
from rfflow.config.evaluation import is_evaluation, read_evaluation
from rfflow.config.spec import EvaluationSpec, Node
from rfflow.control.journal import Journal
from rfflow.errors import ConfigError, nearest
from rfflow.evals.comparison import Candidate
from rfflow.evals.estimates import scores_of, shares
from rfflow.evals.items import Item, read_items
from rfflow.evals.questions import shards
from rfflow.evals.scoring import range_of
from rfflow.files import shown
from rfflow.policies.simulation import Curve
from rfflow.runs.paths import ExperimentPaths
from rfflow.runs.run import RunState
from rfflow.tracking.reading import read_history, read_timeline


@dataclass(frozen=True)
class Answered:
    """What an evaluation has answered."""

    spec: EvaluationSpec
    items: Mapping[int, Item]
    looks: tuple[int, ...]
    share: float
    """Of what may go wrong."""

    def candidate(self, number: int, metric: str) -> Candidate | None:
        """Return what is known of it by a metric; ``None`` where it was not scored by that."""
        if metric not in self.spec.metrics:
            return None
        end = next((place for place in range(self.looks[-1]) if place not in self.items), self.looks[-1])
        ids, scores = [self.items[place].id for place in range(end)], scores_of(self.items, metric, end)
        bounds = range_of(self.spec.metrics[metric])
        return Candidate(number, scores, self.looks, bounds, self.spec.level, self.share, ids)


@dataclass(frozen=True)
class Record:
    """What an experiment left behind."""

    curves: tuple[Curve, ...]
    """Of the runs that the experiment was started with and of the clones that people made, as far as they trained."""
    planned: Mapping[int, int]
    """Chunks that a run was to have."""
    seconds: Mapping[tuple[int, int], float]
    """Time on the device, by run and chunk (from 0)."""
    left_out: tuple[int, ...]
    """Clones that a policy made, and theirs; another policy would have had others."""
    objective: Node
    """The experiment's, if its configuration can be read."""
    silent: tuple[int, ...] = ()
    """Runs that have not ended a chunk, so that nothing is known of them."""
    live: tuple[int, ...] = ()
    """Runs that were queued or running when it was read."""
    answered: Mapping[int, Answered] = field(default_factory=dict)
    """Of the runs that are evaluations."""


def read_record(root: Path) -> Record:
    """Read what an experiment left.

    Raises:
        ConfigError: if it is no experiment's directory, or holds no metrics.
    """
    paths = ExperimentPaths(root)
    try:
        with open(paths.runs_table, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise ConfigError(f"{shown(root)}: {_why_not(root)}") from error
    state = _state(paths.state)
    births = _births(paths)
    steps: dict[int, dict[int, int]] = defaultdict(dict)
    for chunk in read_timeline(paths.timeline):
        steps[chunk["run"]][chunk["chunk"]] = chunk["step"]
    curves: list[Curve] = []
    left_out: set[int] = set()
    silent: list[int] = []
    for row in rows:
        number, parent = int(row["run"]), int(row["parent"]) if row["parent"] else None
        own = paths.found(number, row.get("directory"))
        history = read_history(own.metrics, steps.get(number, {}))
        if row.get("chunk"):
            del history[int(row["chunk"]) :]  # logged in a chunk that did not end
        if parent is not None and (number not in births or parent in left_out):
            left_out.add(number)
        elif history:
            after, is_warm = births.get(number, ({}, False))
            age = 0
            if parent is not None and is_warm:
                age = after[parent] + next((curve.age for curve in curves if curve.number == parent), 0)
            config = _config(own.root, state, number)
            fails_at = len(history) if row.get("state") == RunState.FAILED.value else None
            curves.append(Curve(number, tuple(history), config, fails_at, parent=parent, after=after, age=age))
        else:
            silent.append(number)
    if not curves:
        raise ConfigError(
            f"{shown(root)} holds no metrics of any run (runs/0/metrics.jsonl). Was metrics_log left out?"
        )
    return Record(
        tuple(curves),
        {int(row["run"]): int(row["chunks"] or 0) for row in rows},
        {(c["run"], c["chunk"] - 1): c["ended"] - c["started"] for c in read_timeline(paths.timeline)},
        tuple(sorted(left_out)),
        (asdict(state.objective) if state and state.objective else curves[0].config.get("objective")) or {},
        tuple(silent),
        tuple(int(row["run"]) for row in rows if row.get("state") in (RunState.QUEUED.value, RunState.RUNNING.value)),
        _answered(paths, rows, curves),
    )


def _answered(
    paths: ExperimentPaths, rows: Sequence[Mapping[str, str]], curves: Sequence[Curve]
) -> dict[int, Answered]:
    planned = {int(row["run"]): (int(row["steps"] or 0), int(row["chunks"] or 0)) for row in rows}
    directories = {int(row["run"]): row.get("directory") for row in rows}
    specs = {curve.number: _evaluation(curve.config) for curve in curves if is_evaluation(curve.config)}
    parents = {curve.number: curve.parent for curve in curves if curve.number in specs}
    parts = shares(parents, max((spec.candidates or 0 for spec in specs.values()), default=0))
    return {
        number: Answered(
            spec, read_items(paths.found(number, directories[number]).items), shards(*planned[number]), parts[number]
        )
        for number, spec in specs.items()
        if all(planned[number])
    }


def _evaluation(config: Node) -> EvaluationSpec:
    """Read what was checked when it ran; the objective was the experiment's, and may be another in a replay."""
    metric = next(iter(config.get("metrics") or {}), "")
    return read_evaluation({**config, "objective": {"metric": f"eval_{metric}"}})


def _why_not(root: Path) -> str:
    if not root.exists():
        near = [str(path) for path in root.parent.glob("*") if path.is_dir()]
        return f"there is no such directory.{nearest(str(root), near)}"
    if inside := sorted(path.parent for path in root.glob("*/runs.csv")):
        return f"that is no experiment's directory. The newest one in it: {shown(inside[-1])}"
    return (
        "that is no experiment's directory: it has no runs.csv. Give the one that rfflow made, below outputs/; "
        "callbacks=default writes what is read here."
    )


def _births(paths: ExperimentPaths) -> dict[int, tuple[dict[int, int], bool]]:
    """Return the clones that people made: what all runs had done by then, and whether they began with weights."""
    chunks = read_timeline(paths.timeline)
    births = {}
    for entry in Journal(paths.ops).read():
        if entry.clone is not None and entry.run is not None and entry.by == "person":
            moment = datetime.fromisoformat(entry.time).timestamp() + 0.001  # the journal leaves out what is below
            done = Counter(chunk["run"] for chunk in chunks if chunk["ended"] <= moment)
            births[entry.clone] = ({**done, entry.run: entry.chunk or 0}, entry.is_warm)
    return births


def _state(path: Path) -> SavedExperiment | None:
    try:
        return experiment_file.read(path)
    except ConfigError:  # damaged; the tables say nearly all
        return None


def _config(root: Path, state: SavedExperiment | None, number: int) -> dict[str, Any]:
    """Return a run's configuration as the experiment has it, or else as Hydra has left it."""
    known = None if state is None else state.run(number)
    if known is not None:
        return cast(dict[str, Any], json.loads(known.config))
    try:
        config = OmegaConf.load(root / ".hydra" / "config.yaml")
    except OSError:
        return {}
    try:
        return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    except Exception:  # resolvers of the user's own are not there
        assert isinstance(config, DictConfig)
        return cast(dict[str, Any], OmegaConf.to_container(config, resolve=False))
