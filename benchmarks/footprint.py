"""A Fabric callback that notes how much memory the process holds at every chunk boundary."""

from __future__ import annotations

import json
from pathlib import Path

from rfflow.runs.experiment import Experiment


class Footprint:
    """Writes a list of bytes: the anonymous resident memory at each boundary.

    Anonymous means without mapped files: the base model's file is mapped while it is loaded, and would drown the rest.
    """

    def __init__(self, path: str):
        self._path = Path(path)
        self._samples: list[int] = []

    def on_chunk_end(self) -> None:
        """Take a sample."""
        self._samples.append(anonymous_bytes())

    def on_experiment_end(self, experiment: Experiment) -> None:
        """Write them."""
        self._path.write_text(json.dumps(self._samples), encoding="utf-8")


def anonymous_bytes() -> int:
    """Return the process's resident memory without mapped files."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no RssAnon")
