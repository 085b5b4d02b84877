"""Going on with an experiment whose process is gone, as if nothing had happened."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rfflow import places, saved, trust
from rfflow.confidential import is_digest_of, is_secret, redacted
from rfflow.control.ownership import check_at_rest
from rfflow.errors import ConfigError
from rfflow.keeping import resume_command, unsaved
from rfflow.runs import ExperimentPaths, Run, RunState
from rfflow.saved import SavedExperiment, SavedRun
from rfflow.starting import Command, command_left_by_hydra
from rfflow.tracking.files import replace_text, shown
from rfflow.tracking.lost_lines import put_back
from rfflow.tracking.metrics_log import MetricsLog

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


def take_up(engine: Engine, run: Run, record: SavedRun) -> None:
    """Give a run that was added to the engine its past, and take back what it wrote after its last checkpoint.

    Raises:
        ConfigError: if it is configured in another way than before.
        EngineError: if its directory cannot be written to.
    """
    check_config(record, run)
    try:
        checkpoint = engine.restore(run, record)
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
        path: the file.
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

_requested: Path | None = None
REQUEST = "RFFLOW_RESUME"
"""Tells another program which experiment of its own it is to go on with."""


def state_of(root: Path) -> SavedExperiment | None:
    """Return the past of an experiment in this directory, where the command line asks to go on with it.

    Raises:
        ConfigError: if there is a past, and nobody asked to go on with it; or if it is still the present.
    """
    check_at_rest(root)
    if str(root.resolve()) in (str(_requested), os.environ.get(REQUEST)):
        return read_experiment_state(root)
    if ExperimentPaths(root).state.exists():
        raise ConfigError(
            f"{shown(root)} holds an experiment already. Go on with it: {resume_command(root)}. Or give the new one a "
            "directory of its own."
        )
    return None


def command(arguments: Sequence[str]) -> list[str] | None:
    """Return the command line with which an experiment was started, with what makes it go on in its directory.

    Where it was another program, one of the user's own, that program takes the place of this process.

    Args:
        arguments: those given now, ``resume=<directory>`` among them, and ``resume_foreign=true`` where it may be
            another user's. Others may only say how the experiment is run.

    Returns:
        The arguments; ``None`` if the experiment is finished, and that has been said.

    Raises:
        ConfigError: if there is nothing to go on with, or somebody else could have written what would be run.
    """
    global _requested
    (given,) = [argument for argument in arguments if argument.startswith("resume=")][:1]
    others = [argument for argument in arguments if not argument.startswith(("resume=", f"{trust.FOREIGN}="))]
    root = Path(given.removeprefix("resume=").strip("'\"")).expanduser().resolve()
    trust.check(root, arguments)
    check_at_rest(root)
    state = read_experiment_state(root)
    if is_over(state):
        print(f"The experiment in {shown(root)} is finished: {summary(state)}. Nothing is left to do.")
        return None
    started = state.command or command_left_by_hydra(root)
    if started is None:
        raise ConfigError(
            f"resume={shown(root)}: neither its experiment.json, which an earlier version of rfflow wrote, nor a "
            "multirun.yaml or .hydra/hydra.yaml in it says how the experiment was started."
        )
    is_ours = _is_ours(started, state)
    allowed = _ALLOWED if is_ours else _ALLOWED_TO_APPS
    for other in others:
        if not other.lstrip("+~").startswith(allowed):
            raise ConfigError(
                f"{other} cannot be given with resume=: the experiment goes on as it was started. Allowed: "
                f"{', '.join(f'{key}*' for key in allowed)}."
            )
    if Path(started.cwd).is_dir():
        os.chdir(started.cwd)  # what paths in the configuration are relative to
    _requested = root
    again = started.arguments(root, others)
    if not is_ours:
        _become(root, state.program or (), again)
    return again


def _is_ours(started: Command, state: SavedExperiment) -> bool:
    """Whether it was our own command that started an experiment; a past that does not say knew no other."""
    from rfflow.__main__ import CONF

    if state.program is None or started.main == str(CONF):
        return True
    return state.program == ("-m", "rfflow") or Path(state.program[0] if state.program else "").stem == "rfflow"


def _become(root: Path, program: Sequence[str], arguments: Sequence[str]) -> None:
    """Go on as another program, which reads in its environment what is asked of it."""
    shown_root = shown(root)
    if not program:
        raise ConfigError(
            f"resume={shown_root}: it was started from Python, with a function of its own that no command can call. "
            "Only experiments of a program that is run as a file or a module can be gone on with."
        )
    if program[0] != "-m" and not Path(program[0]).exists():
        raise ConfigError(f"resume={shown_root}: it was started by {program[0]}, which is not there any more.")
    sys.stdout.flush()
    os.environ[REQUEST] = str(root)
    os.execv(sys.executable, [sys.executable, *program, *arguments])


_ALLOWED = ("control.", "checkpoint.", "engine.", "callbacks", "loggers", "hydra.")
_ALLOWED_TO_APPS = (*(f"rfflow.{key}" for key in _ALLOWED[:-1]), "hydra.")


def _why_not(root: Path) -> str:
    if not root.exists():
        beside = [path.name for path in root.parent.glob("*/") if (path / "experiment.json").exists()]
        near = [
            f" Did you mean resume={shown(root.parent / name)}?" for name in get_close_matches(root.name, beside, 1)
        ]
        return f"there is no such directory.{near[0] if near else _newest()}"
    if (root / "study.journal").exists():
        return (
            "the search in it belongs to a program that trains by itself, without rfflow.run, so no job can be gone on "
            f"with. The search can: run the program again with hydra.sweep.dir={shown(root)}."
        )
    inside = sorted(path.parent for path in root.glob("*/experiment.json"))
    if inside:
        return f"that is not an experiment. The newest one in it: resume={shown(inside[-1])}"
    if (root / "runs.csv").exists():
        return "it has no experiment.json: it was run with checkpoint.every=null, which saves nothing to go on with."
    return (
        "that is not an experiment: it has no experiment.json. Give the directory that rfflow made, below outputs/."
        f"{_newest()}"
    )


def _newest() -> str:
    there = sorted(Path("outputs").glob("*/*/experiment.json"), key=lambda path: path.parent.name)
    return f" The newest one here: resume={there[-1].parent}" if there else ""


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
