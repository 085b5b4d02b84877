"""Whose a checkpoint is, or a file of weights: it says so itself, and is not taken for another where it was moved."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rfflow.errors import ConfigError
from rfflow.files import shown

SECTION = "of"
"""Under which a checkpoint's seal, and the metadata of a file of weights, say whose they are."""


@dataclass(frozen=True)
class Owner:
    """The run that a file was written for."""

    experiment: str
    """The experiment's id; empty for one that was begun before there were any: then nothing is checked."""
    run: int
    config: str
    """A checksum of its configuration."""

    def label(self, step: int) -> dict[str, Any]:
        """Return what a file says that the run has written at a step."""
        return asdict(self) | {"step": step}

    def check(self, path: Path, label: Mapping[str, Any] | None, steps: set[int] | None = None) -> None:
        """Check that a file is the run's own.

        Args:
            path: the file, or the checkpoint.
            label: what it says of itself.
            steps: those at which it may have been written; any if there are none.

        Raises:
            ForeignFile: if it is not, saying whose it is.
        """
        if not self.experiment:
            return
        said = dict(label or {})
        is_own = all(said.get(key) == value for key, value in asdict(self).items())
        if is_own and (not steps or said.get("step") in steps):
            return
        raise ForeignFile(
            f"{shown(path)} is not what run {self.run} has written{_at(steps)}: {self._whose(said)}. It was exchanged, "
            "renamed or copied. Put each in its own place again. Where that of the run is lost, take this one away: it "
            "then goes on from what there is of its own."
        )

    def _whose(self, said: Mapping[str, Any]) -> str:
        if not said:
            return "it does not say whose it is"
        step = said.get("step")
        if said.get("experiment") != self.experiment:
            return f"it is of run {said.get('run')} of another experiment, at step {step}"
        if said.get("run") != self.run:
            return f"it is of run {said.get('run')}, at step {step}"
        if said.get("config") != self.config:
            return f"it is of a run {self.run} with another configuration, at step {step}"
        return f"it is of step {step}"


class ForeignFile(ConfigError):
    """A checkpoint, or a file of weights, is another run's."""


def checksum(config: str) -> str:
    """Return a checksum of a configuration."""
    return f"{zlib.crc32(config.encode('utf-8', 'backslashreplace')):08x}"


def read_label(path: Path) -> dict[str, Any] | None:
    """Return what a safetensors file says of whose it is; ``None`` where it says nothing.

    Raises:
        OSError: if it cannot be read.
    """
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        try:
            metadata = json.loads(file.read(size))["__metadata__"]
            label: dict[str, Any] = json.loads(metadata[SECTION])
        except (ValueError, KeyError, TypeError, MemoryError):
            return None
    return label


def _at(steps: set[int] | None) -> str:
    if not steps:
        return ""
    return f" at step {', '.join(map(str, sorted(steps)))}"
