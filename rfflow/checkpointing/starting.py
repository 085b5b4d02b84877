"""How an experiment was started, kept in ``experiment.json`` so that it can be started again as it was.

Hydra leaves ``multirun.yaml`` and ``.hydra/``, too. Those are for people to read: whoever starts Hydra in the same
directory writes over them.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from rfflow.config.references import as_typed
from rfflow.files import shown


@dataclass(frozen=True)
class Command:
    """A command line, taken apart; overrides stand in it as they were typed, unresolved."""

    is_sweep: bool
    directory: str
    """The experiment's, as it was seen from ``cwd``; empty where that is not known."""
    cwd: str
    """What paths in the configuration are relative to."""
    config_name: str | None = None
    main: str | None = None
    """Where the program's own configuration lies."""
    config_path: str | None = None
    """``--config-path``, where somebody gave it."""
    config_dirs: tuple[str, ...] = ()
    """``--config-dir``."""
    hydra: tuple[str, ...] = ()
    """Overrides of Hydra's own settings, less those that say the mode and the directory."""
    task: tuple[str, ...] = ()
    """All other overrides, those that sweep among them."""

    def arguments(self, root: Path, others: Sequence[str] = ()) -> list[str]:
        """Return the command line that goes on in ``root``; the current directory is to be ``cwd``."""
        is_known = self.directory and Path(self.directory).resolve() == root
        directory = self.directory if is_known else shown(root)
        quoted = directory.replace("\\", "\\\\").replace("'", "\\'")
        words = ["--multirun"] if self.is_sweep else []
        words += ["--config-name", self.config_name] if self.config_name else []
        words += ["--config-path", self.config_path] if self.config_path else []
        for folder in self.config_dirs:
            words += ["--config-dir", folder]
        return [*words, *self.hydra, f"{_place(self.is_sweep)}='{quoted}'", *self.task, *others]


def command_of(hydra: Any, *, is_sweep: bool, directory: str) -> Command:
    """Take a command line apart.

    Args:
        hydra: the part of a configuration that is Hydra's own.
        is_sweep: whether it is a ``--multirun``.
        directory: the experiment's.
    """
    sources = hydra.runtime.config_sources
    given = ("hydra.mode=", f"{_place(is_sweep)}=")
    return Command(
        is_sweep=is_sweep,
        directory=directory,
        cwd=str(hydra.runtime.cwd),
        config_name=hydra.job.config_name,
        main=next((source.path for source in sources if source.provider == "main"), None),
        config_path=_flag("--config-path", "-cp"),
        config_dirs=tuple(source.path for source in sources if source.provider == "command-line"),
        hydra=tuple(text for text in as_typed(hydra.overrides.hydra) if not text.lstrip("+").startswith(given)),
        task=tuple(as_typed(hydra.overrides.task)),
    )


def command_left_by_hydra(root: Path) -> Command | None:
    """Return the command line of an experiment whose own file does not say it: of a version of rfflow before this one.

    Returns:
        What Hydra wrote, perhaps of a later command in the same directory; ``None`` where it wrote nothing.
    """
    for file, is_sweep in ((root / "multirun.yaml", True), (root / ".hydra" / "hydra.yaml", False)):
        if file.is_file():
            return command_of(OmegaConf.load(file).hydra, is_sweep=is_sweep, directory="")
    return None


def _place(is_sweep: bool) -> str:
    return "hydra.sweep.dir" if is_sweep else "hydra.run.dir"


def _flag(*names: str) -> str | None:
    """Return the value of a flag of the command that runs now."""
    for word, following in itertools.pairwise([*sys.argv[1:], ""]):
        name, equals, value = word.partition("=")
        if name in names:
            return value if equals else following
    return None
