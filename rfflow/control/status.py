"""``status.yaml``: the runs as they stand, for whoever wants to see them without a terminal."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rfflow.control.belonging import held
from rfflow.control.filing import write_whole
from rfflow.control.items import STATUS
from rfflow.control.journal import now

log = logging.getLogger(__name__)

_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # the C one is ten times as fast, where it is built
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class RunStatus:
    """One run."""

    number: int
    state: str
    overrides: tuple[str, ...] = ()
    chunk: int | None = None
    """Chunks done."""
    chunks: int | None = None
    """Chunks in all; None until the run has started."""
    step: int = 0
    steps: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    parent: int | None = None


@dataclass(frozen=True)
class Status:
    """The experiment."""

    experiment: str
    """Its directory."""
    runs: tuple[RunStatus, ...] = ()
    waiting: bool = False
    """Nothing can train until an op comes."""
    pid: int = field(default_factory=os.getpid)
    updated: str = field(default_factory=now)


class StatusFile:
    """Keeps ``status.yaml`` of a control directory current."""

    def __init__(self, directory: Path | str):
        self.path = Path(directory) / STATUS
        self._trouble: str | None = None

    def write(self, status: Status) -> None:
        """Replace the file in one step. A full disk or a missing directory is logged once and stops nothing."""
        try:
            with held(self.path.parent) as directory:
                write_whole(directory, self.path.name, _dump(status).encode())
        except OSError as error:
            if str(error) != self._trouble:
                log.warning("Cannot write %s: %s", self.path, error)
            self._trouble = str(error)
        else:
            self._trouble = None


def read_status(directory: Path | str) -> dict[str, Any] | None:
    """Return what ``status.yaml`` holds, or None where there is none that can be read."""
    try:
        document = yaml.load((Path(directory) / STATUS).read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    return document if isinstance(document, dict) else None


def _dump(status: Status) -> str:
    document = asdict(status)
    for run in document["runs"]:
        run["overrides"] = list(run["overrides"])
        # Trainers log NumPy's and torch's numbers too, which are no plain floats.
        run["metrics"] = {str(name): float(value) for name, value in run["metrics"].items()}
    document = {key: document[key] for key in ("experiment", "pid", "updated", "waiting", "runs")}
    document["runs"] = list(document["runs"])
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
