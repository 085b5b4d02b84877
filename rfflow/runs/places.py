"""Where runs lie: each in a directory of its own, that nobody else writes to and that is not removed with another's.

Jobs lie where Hydra puts them, which is anywhere. Clones lie in ``runs/`` where the jobs do so by their numbers, else
in ``clones/``; a clone's directory bears a mark until the experiment is over and behind, and only what bears it is ever
removed.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from rfflow.errors import ConfigError
from rfflow.files import shown
from rfflow.runs.experiment import Experiment
from rfflow.runs.paths import ExperimentPaths, RunPaths
from rfflow.runs.run import Run

MARK = ".made-for-a-clone"
"""In the directory of a clone; it holds the directory's name, so that a copy of it counts for nothing."""
_FOLDERS = ("runs", "clones")


def check_apart(jobs: Mapping[int, Path], runs: Iterable[Run] = ()) -> None:
    """Check that no two runs would write into one directory.

    Args:
        jobs: the directories of jobs that have not begun, by number.
        runs: those that are there.

    Raises:
        ConfigError: naming two, and how to tell them apart.
    """
    owners = {run.paths.root.resolve(): run.number for run in runs}
    for number, place in jobs.items():
        if (owner := owners.setdefault(place.resolve(), number)) != number:
            raise ConfigError(
                f"Runs {owner} and {number} would both write into {shown(place)}: hydra.sweep.dir and "
                "hydra.sweep.subdir do not tell them apart. Give every run a directory of its own: "
                "hydra.sweep.subdir=runs/${hydra.job.num} does, and ${hydra.job.override_dirname} names what differs."
            )


def check_unused(number: int, place: Path) -> None:
    """Check that a directory holds no run of another experiment, whose curves and checkpoints would mix with the new.

    An empty folder for checkpoints is none: an experiment that was refused before it trained has left it.

    Raises:
        ConfigError: naming what is there.
    """
    paths = RunPaths(place)
    used = paths.checkpoints.is_dir() and any(paths.checkpoints.iterdir())
    _check_none_of(number, place, paths.metrics, *([paths.checkpoints] if used else []))


def check_no_experiment(number: int, place: Path) -> None:
    """Check that a directory is not the one of another experiment.

    Raises:
        ConfigError: if it is.
    """
    _check_none_of(number, place, ExperimentPaths(place).state)


def _check_none_of(number: int, place: Path, *files: Path) -> None:
    for file in files:
        if file.exists():
            raise ConfigError(
                f"Run {number} would write into {shown(place)}, which holds another run: {file.name} is there. Give it "
                "a directory of its own (hydra.sweep.dir=..., hydra.sweep.subdir=..., hydra.run.dir=...), or move "
                "the other away."
            )


def place_for_clone(experiment: Experiment, number: int, early: Iterable[Run] = ()) -> Path:
    """Return a directory for a clone that nobody has; nothing of it is made yet.

    Args:
        experiment: whose clone it is.
        number: the clone's.
        early: clones that do not take part yet.
    """
    root, runs = experiment.paths.root, [*experiment.runs, *early]
    are_usual = all(run.paths.root == experiment.paths.run(run.number).root for run in runs if run.parent is None)
    folder = root.absolute() / _FOLDERS[0 if are_usual else 1]
    taken = {run.paths.root.resolve() for run in runs}
    names = itertools.chain([str(number)], (f"{number}-{count}" for count in itertools.count(2)))
    return next(place for name in names if _is_free(place := folder / name, taken))


def make(place: Path) -> None:
    """Make the directory of a clone, empty whatever is left in it of another that came to nothing."""
    remove(place)
    place.mkdir(parents=True, exist_ok=True)
    (place / MARK).write_text(place.name, encoding="utf-8")


def remove(place: Path) -> None:
    """Remove the directory of a clone that does not take part, if it is one that was made for it."""
    if not _is_marked(place):
        return
    for path in list(place.iterdir()):
        if path.name == MARK:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    (place / MARK).unlink()  # last, so that it can be gone on with
    place.rmdir()


def remove_unknown(root: Path, known: Iterable[Path]) -> None:
    """Remove what is left of clones that were being made when the process ended; no run has these directories."""
    taken = {place.resolve() for place in known}
    for folder in _FOLDERS:
        for place in (root / folder).glob("*"):
            if place.resolve() not in taken:
                remove(place)


def _is_free(place: Path, taken: set[Path]) -> bool:
    if place.resolve() in taken or place.is_symlink():
        return False
    return not place.exists() or _is_marked(place) or (place.is_dir() and not any(place.iterdir()))


def _is_marked(place: Path) -> bool:
    try:
        return not place.is_symlink() and (place / MARK).read_text(encoding="utf-8") == place.name
    except (OSError, UnicodeDecodeError):
        return False
