"""Going on with an experiment whose process is gone, as if nothing had happened."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rfflow.checkpointing import experiment_file, provenance
from rfflow.checkpointing.disk import unsaved
from rfflow.checkpointing.experiment_file import RunRecord, SavedExperiment
from rfflow.confidential import is_digest_of, is_secret, redacted
from rfflow.errors import ConfigError
from rfflow.files import replace_text, shown
from rfflow.runs import places
from rfflow.runs.run import Run
from rfflow.tracking.lost_lines import put_back
from rfflow.tracking.metrics_log import MetricsLog

if TYPE_CHECKING:
    from rfflow.engine.engine import Engine

log = logging.getLogger(__name__)


def warn_of_versions(state: SavedExperiment) -> None:
    """Say which libraries are not those that the experiment was started with."""
    now = provenance.versions()
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


def check_config(record: RunRecord, run: Run) -> None:
    """Check that a run is configured as it was.

    Raises:
        ConfigError: naming the first key that is not.
    """
    before, now = _flat(json.loads(record.config)), _flat(json.loads(experiment_file.config_text(run.spec.config)))
    for key in sorted({*before, *now}):
        hidden = run.spec.hidden.get(key)
        is_same = before.get(key) == now.get(key) or (hidden is not None and before.get(key) == hidden)
        if is_same and (hidden is None or key not in record.digests or is_digest_of(record.digests[key], hidden)):
            continue
        if is_secret(key):  # a token may have been renewed
            continue
        was, value = (redacted(repr(values.get(key, "nothing"))) for values in (before, now))
        raise ConfigError(
            f"Run {run.number} was configured with {key}={was} and would now go on with "
            f"{value}{', which stands for something else' if is_same else ''}: a file in conf/ has changed since, or "
            "the environment. Give the old value back, or start a new experiment."
        )


def go_on(engine: Engine, state: SavedExperiment) -> None:
    """Let an engine take over an experiment; its runs follow with :func:`take_up`."""
    warn_of_versions(state)
    engine.go_on(state)
    remove_leftovers(engine.experiment.paths.root, state)


def take_up(engine: Engine, run: Run, record: RunRecord) -> None:
    """Give a run that was added to the engine its past, and take back what it wrote after its last checkpoint.

    Raises:
        ConfigError: if it is configured in another way than before.
        EngineError: if its directory cannot be written to.
    """
    check_config(record, run)
    try:
        checkpoint = engine.restore(run, record)
        rewind_log(run.paths.generations, None if run.state.is_final else run.step)
        lines = rewind_log(run.paths.metrics, None if run.state.is_final else run.step)
        if lines is not None or any(isinstance(one, MetricsLog) for one in engine.fabric._callbacks):
            _see_to_lost_lines(run, lines or [], checkpoint)
    except OSError as error:
        raise unsaved(f"the directory of run {run.number}", error, engine.experiment.paths.root) from error
    log.info("Run %s: %s, step %s", run.number, run.state.value, run.step)


def put_in_order(engine: Engine, state: SavedExperiment) -> None:
    """Let the runs stand as they stood: jobs are composed again before the clones that were made between them."""
    places = {record.number: place for place, record in enumerate(state.runs)}
    engine.experiment.runs.sort(key=lambda run: places.get(run.number, len(places)))


def remove_leftovers(root: Path, state: SavedExperiment) -> None:
    """Remove what is left of clones that were being made when the process ended; nobody knows of them."""
    places.remove_unknown(root, [record.path(root) for record in state.runs])


def rewind_log(path: Path, step: int | None) -> list[dict[str, Any]] | None:
    """Take off the lines of a ``metrics.jsonl`` that are of later steps, or torn: they will be written again.

    At step 0 a run begins anew, and what it logs before its first step, too, comes once more.

    Args:
        path: the file, or another whose lines have a ``step``.
        step: where the run goes on; ``None`` for one that has ended, of which every line stays.

    Returns:
        The lines that stay; ``None`` where there is no file.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return None
    read = [(line, found) for line in lines if (found := _read(line)) is not None]
    kept = [(line, found) for line, found in read if step is None or (step and found["step"] <= step)]
    if step is not None and len(kept) < len(lines):
        replace_text(path, "".join(f"{line}\n" for line, _ in kept))
    return [found for _, found in kept]


def _read(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
        is_line = isinstance(found["step"], int) and isinstance(found.setdefault("metrics", {}), dict)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return found if is_line else None


def _see_to_lost_lines(run: Run, lines: list[dict[str, Any]], checkpoint: Path | None) -> None:
    """Say that lines are missing which the run had logged, and put back what is known of them."""
    lost = run.logs - len(lines)
    if lost <= 0:
        return
    restored = put_back(run, lines, checkpoint)
    log.warning(
        "%s: %d of the %d lines that run %d had logged are missing or cannot be read. %d of them could be put back "
        "from what its checkpoint knows%s.",
        shown(run.paths.metrics),
        lost,
        run.logs,
        run.number,
        restored,
        "" if restored == lost else ", no more",
    )


# --- the command line -------------------------------------------------------------------------------------------------


def newest() -> str:
    there = sorted(Path("outputs").glob("*/*/experiment.json"), key=lambda path: path.parent.name)
    return f" The newest one here: resume={there[-1].parent}" if there else ""


def _flat(node: Any, name: str = "") -> dict[str, Any]:
    if isinstance(node, dict) and node:
        return {k: v for key, value in node.items() for k, v in _flat(value, f"{name}.{key}" if name else key).items()}
    return {name: node}
