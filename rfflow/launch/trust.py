"""Whether an experiment's directory may be gone on with: it is code, like a Makefile, and may be somebody else's."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from rfflow.control.belonging import is_open_to_others, stranger_among, user
from rfflow.errors import ConfigError
from rfflow.files import shown
from rfflow.runs.paths import ExperimentPaths

FOREIGN = "resume_foreign"
"""What is said on the command line, ``true``, to go on with an experiment of another user's."""


def check(root: Path, arguments: Sequence[str]) -> None:
    """Check that nobody else has written what ``resume=`` would run, unless the command line says that this may be.

    Raises:
        ConfigError: saying whose it is, or who could have written to it.
    """
    if not _is_trusted(arguments):
        check_ours(root)


def check_ours(root: Path) -> None:
    """Check that nobody else has written what going on with an experiment runs.

    Raises:
        ConfigError: saying whose it is, or who could have written to it.
    """
    state = ExperimentPaths(root).state
    if not os.path.lexists(state):
        return  # nothing is read then, and what is wrong is said elsewhere
    warning = (
        "Going on with an experiment runs, as you, the functions, callbacks and programs that its directory names."
    )
    owner = stranger_among(root, (state.name, "multirun.yaml", ".hydra", ".hydra/hydra.yaml"))
    if owner is not None:
        raise ConfigError(
            f"resume={shown(root)} belongs to another user ({user(owner)}; you are {user(os.geteuid())}). {warning} If "
            f"you know what is in it and trust that, add {FOREIGN}=true."
        )
    if state.exists() and is_open_to_others(state):
        mode = f"{stat.S_IMODE(state.stat().st_mode):o}"
        raise ConfigError(
            f"resume={shown(root)}: others may write to {state.name} (its mode is {mode}). {warning} If nobody has put "
            f"anything in there: chmod go-w {shown(state)}, or add {FOREIGN}=true."
        )


def _is_trusted(arguments: Sequence[str]) -> bool:
    """Whether the user says that the directory may be another's."""
    words = [argument.partition("=")[2] for argument in arguments if argument.startswith(f"{FOREIGN}=")]
    for word in words:
        if word not in ("true", "false"):
            raise ConfigError(f"{FOREIGN} is {word!r}. Allowed: true, false.")
    return "true" in words
