"""``status.yaml`` and ``status.json``: the runs as they stand, for people and programs without a terminal."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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
    activations: str | None = None
    """What it does with them, "kept", "recomputed", "every 3rd"; None where that is not known."""
    activations_why: str | None = None
    rank: int | None = None
    """Its place by the objective; 1 is the best. Last, as it is all that changes of many when one has trained."""


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
        self._written: dict[int, _Written] = {}
        """How runs stand in the files; between two boundaries hardly any of them changes."""

    def write(self, status: Status) -> None:
        """Replace the files, each in one step. A full disk or a missing directory is logged once and stops nothing."""
        try:
            with held(self.path.parent) as directory:
                written = [self._run(run) for run in status.runs]
                head = {key: getattr(status, key) for key in ("experiment", "pid", "updated", "waiting", "slots")}
                in_json = f'{json.dumps(head)[:-1]}, "runs": [{", ".join(one for one, _ in written)}]}}'
                write_whole(directory, self.path.with_suffix(".json").name, in_json.encode())
                in_yaml = "".join(["runs:\n", *(one for _, one in written)] if written else ["runs: []\n"])
                write_whole(directory, self.path.name, f"{_dump(head)}{in_yaml}".encode())
        except OSError as error:
            if str(error) != self._trouble:
                log.warning("Cannot write %s: %s", self.path, error)
            self._trouble = str(error)
        else:
            self._trouble = None

    def _run(self, run: RunStatus) -> tuple[str, str]:
        """Return a run as JSON and as YAML."""
        unranked, written = replace(run, rank=None), self._written.get(run.number)
        if written is None or written.run != unranked:
            # The metrics are a mapping that its owner goes on to change.
            written = self._written[run.number] = _Written(replace(unranked, metrics=dict(run.metrics)))
        rank = json.dumps(run.rank)
        return f'{written.json}, "rank": {rank}}}', f"{written.yaml}  rank: {rank}\n"


class _Written:
    """A run, as it stands in the two files, up to its rank."""

    def __init__(self, run: RunStatus):
        document = {**vars(run), "overrides": list(run.overrides)}
        del document["rank"]
        # Trainers log NumPy's and torch's numbers too, which are no plain floats.
        metrics = {str(name): float(value) for name, value in run.metrics.items()}
        # JSON has no NaN and no infinities: there they are words.
        strict = {name: value if math.isfinite(value) else str(value) for name, value in metrics.items()}
        self.run = run
        self.json = json.dumps({**document, "metrics": strict})[:-1]
        self.yaml = _dump([{**document, "metrics": metrics}])


def read_status(directory: Path | str) -> dict[str, Any] | None:
    """Return what ``status.yaml`` holds, or None where there is none that can be read."""
    try:
        document = yaml.load((Path(directory) / STATUS).read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    return document if isinstance(document, dict) else None


def _dump(document: object) -> str:
    text: str = yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text
