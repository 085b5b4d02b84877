"""``resume=``: the command with which an experiment was started, to go on with it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from rfflow.checkpointing import experiment_file
from rfflow.checkpointing.disk import resume_command
from rfflow.checkpointing.experiment_file import SavedExperiment
from rfflow.checkpointing.starting import Command, command_left_by_hydra
from rfflow.control.ownership import check_at_rest
from rfflow.engine.restoring import newest
from rfflow.errors import ConfigError
from rfflow.files import shown
from rfflow.launch import trust
from rfflow.runs.paths import ExperimentPaths
from rfflow.runs.run import RunState


def read_experiment_state(root: Path) -> SavedExperiment:
    """Read what an experiment was when its process ended.

    Raises:
        ConfigError: if there is none, naming those that are near.
    """
    state = experiment_file.read(ExperimentPaths(root).state)
    if state is None:
        raise ConfigError(f"resume={shown(root)}: {_why_not(root)}")
    return state


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


def command(arguments: Sequence[str]) -> list[str]:
    """Return the command line with which an experiment was started, with what makes it go on in its directory.

    One that is finished is opened again, and waits for ops. Where it was another program, one of the user's own, that
    program takes the place of this process.

    Args:
        arguments: those given now, ``resume=<directory>`` among them, and ``resume_foreign=true`` where it may be
            another user's. Others may only say how the experiment is run.

    Returns:
        The arguments.

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
        print(f"The experiment in {shown(root)} is finished: {summary(state)}. It is opened again for ops.")
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
    from rfflow.config.files import CONF

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


_ALLOWED = ("control.", "checkpoint.", "engine.", "callbacks", "loggers", "limits", "prices", "hydra.")


_ALLOWED_TO_APPS = (*(f"rfflow.{key}" for key in _ALLOWED[:-3]), "hydra.")


def _why_not(root: Path) -> str:
    if not root.exists():
        beside = [path.name for path in root.parent.glob("*/") if (path / "experiment.json").exists()]
        near = [
            f" Did you mean resume={shown(root.parent / name)}?" for name in get_close_matches(root.name, beside, 1)
        ]
        return f"there is no such directory.{near[0] if near else newest()}"
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
        f"{newest()}"
    )


def is_over(state: SavedExperiment) -> bool:
    """Whether there is nothing left to do."""
    return state.is_finished and all(record.state.is_final for record in state.runs)


def summary(state: SavedExperiment) -> str:
    """Say how the runs of an experiment stand: ``3 completed, 1 stopped``."""
    counts = {kind: sum(record.state is kind for record in state.runs) for kind in RunState}
    return ", ".join(f"{count} {kind.value}" for kind, count in counts.items() if count)
