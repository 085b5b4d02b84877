"""``status.yaml`` and ``status.json``: the runs as they stand, for people and programs without a terminal."""

from __future__ import annotations

import json
import logging
import math
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
    chunks_before: int = 0
    """Chunks that its ancestors had trained, of a clone that started warm."""
    slot: int | None = None
    """The slot where it trains, or has trained last; None before its first chunk."""
    since: str | None = None
    """Since when it trains there, ISO 8601; None while it waits."""
    rank: int | None = None
    """Its place by the objective; 1 is the best."""


@dataclass(frozen=True)
class Status:
    """The experiment."""

    experiment: str
    """Its directory."""
    runs: tuple[RunStatus, ...] = ()
    waiting: bool = False
    """Nothing can train until an op comes."""
    slots: int = 1
    """Devices on which runs train at the same time."""
    pid: int = field(default_factory=os.getpid)
    updated: str = field(default_factory=now)


class StatusFile:
    """Keeps ``status.yaml`` of a control directory current, and ``status.json``, which is quicker to read."""

    def __init__(self, directory: Path | str):
        self.path = Path(directory) / STATUS
        self._trouble: str | None = None

    def write(self, status: Status) -> None:
        """Replace the files, each in one step. A full disk or a missing directory is logged once and stops nothing."""
        try:
            with held(self.path.parent) as directory:
                document = _document(status)
                write_whole(directory, self.path.with_suffix(".json").name, json.dumps(_strict(document)).encode())
                write_whole(directory, self.path.name, _dump(document).encode())
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


def _document(status: Status) -> dict[str, Any]:
    document = asdict(status)
    for run in document["runs"]:
        run["overrides"] = list(run["overrides"])
        # Trainers log NumPy's and torch's numbers too, which are no plain floats.
        run["metrics"] = {str(name): float(value) for name, value in run["metrics"].items()}
    document = {key: document[key] for key in ("experiment", "pid", "updated", "waiting", "slots", "runs")}
    document["runs"] = list(document["runs"])
    return document


def _strict(document: dict[str, Any]) -> dict[str, Any]:
    """Return the same without numbers that JSON does not have: NaN and the infinities become words."""
    runs = [
        {**run, "metrics": {k: v if math.isfinite(v) else str(v) for k, v in run["metrics"].items()}}
        for run in document["runs"]
    ]
    return {**document, "runs": runs}


def _dump(document: dict[str, Any]) -> str:
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
