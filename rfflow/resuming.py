"""Going on with an experiment whose process is gone, as if nothing had happened."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rfflow import saved
from rfflow.errors import ConfigError, nearest
from rfflow.runs import ExperimentPaths, Run, RunState
from rfflow.saved import SavedExperiment, SavedRun
from rfflow.tracking.files import replace_text, shown

if TYPE_CHECKING:
    from rfflow.engine import Engine

log = logging.getLogger(__name__)


def read_experiment_state(root: Path) -> SavedExperiment:
    """Read what an experiment was when its process ended.

    Raises:
        ConfigError: if there is none, naming those that are near.
    """
    state = saved.read(ExperimentPaths(root).state)
    if state is None:
        raise ConfigError(f"resume={shown(root)}: {_why_not(root)}")
    return state


def warn_of_versions(state: SavedExperiment) -> None:
    """Say which libraries are not those that the experiment was started with."""
    now = saved.versions()
    changed = [
        f"{name} {before} -> {now.get(name, 'not installed')}"
        for name, before in state.versions.items()
        if now.get(name) != before
    ]
    if changed:
        log.warning(
            "Other versions than before: %s. Runs go on, but perhaps not as they would have to the last bit.",
            ", ".join(changed),
        )


def check_config(record: SavedRun, run: Run) -> None:
    """Check that a run is configured as it was.

    Raises:
        ConfigError: naming the first key that is not.
    """
    before, now = _flat(json.loads(record.config)), _flat(json.loads(saved.config_text(run.spec.config)))
    for key in sorted({*before, *now}):
        if before.get(key) != now.get(key):
            raise ConfigError(
                f"Run {run.number} was configured with {key}={before.get(key, 'nothing')!r} and would now go on with "
                f"{now.get(key, 'nothing')!r}: a file in conf/ has changed since. Give the old value back, or start a "
                "new experiment."
            )


def take_up(engine: Engine, run: Run, record: SavedRun) -> None:
    """Give a run that was added to the engine its past, and take back what it wrote after its last checkpoint."""
    engine.restore(run, record)
    if not run.state.is_final:
        rewind_log(run.paths.metrics, run.step)
    log.info("Run %s: %s, step %s", run.number, run.state.value, run.step)


def remove_leftovers(root: Path, state: SavedExperiment) -> None:
    """Remove what is left of clones that were being made when the process ended; nobody knows of them."""
    known = max((record.number for record in state.runs), default=-1)
    for folder in (root / "runs").glob("*"):
        if folder.name.isdigit() and int(folder.name) > known:
            shutil.rmtree(folder, ignore_errors=True)


def rewind_log(path: Path, step: int) -> None:
    """Take off the lines of a ``metrics.jsonl`` that are of later steps, or torn: they will be written again."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return
    kept = [line for line in lines if (seen := _step_of(line)) is not None and seen <= step]
    if len(kept) < len(lines):
        replace_text(path, "".join(f"{line}\n" for line in kept))


def _step_of(line: str) -> int | None:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None


def _why_not(root: Path) -> str:
    if not root.exists():
        near = [str(path) for path in root.parent.glob("*") if path.is_dir()] if root.parent.is_dir() else []
        return f"there is no such directory.{nearest(str(root), near)}"
    inside = sorted(path.parent for path in root.glob("*/experiment.json"))
    if inside:
        return f"that is not an experiment. The newest one in it: resume={shown(inside[-1])}"
    if (root / "runs.csv").exists():
        return "it has no experiment.json: it was run with checkpoint.every=null, which saves nothing to go on with."
    return "that is not an experiment: it has no experiment.json. Give the directory that rfflow made, below outputs/."


def is_over(state: SavedExperiment) -> bool:
    """Whether there is nothing left to do."""
    return state.is_finished and all(record.state.is_final for record in state.runs)


def summary(state: SavedExperiment) -> str:
    """Say how the runs of an experiment stand: ``3 completed, 1 stopped``."""
    counts = {kind: sum(record.state is kind for record in state.runs) for kind in RunState}
    return ", ".join(f"{count} {kind.value}" for kind, count in counts.items() if count)


def _flat(node: Any, name: str = "") -> dict[str, Any]:
    if isinstance(node, dict) and node:
        return {k: v for key, value in node.items() for k, v in _flat(value, f"{name}.{key}" if name else key).items()}
    return {name: node}
