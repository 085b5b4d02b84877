"""The files of an experiment, without the experiment."""

from __future__ import annotations

import json
from pathlib import Path

from rfflow.control.status import RunStatus, Status, StatusFile


def make_experiment(root: Path) -> Path:
    """Write an experiment of two runs, of which the first has trained a chunk; return its directory."""
    for number in range(2):
        (root / "runs" / str(number)).mkdir(parents=True)
    (root / "control").mkdir()
    runs = (RunStatus(0, "running", ("lr=1",), 1, 4, 3, 12, {"loss": 2.0}), RunStatus(1, "queued", ("lr=2",)))
    StatusFile(root / "control").write(Status(str(root), runs))
    chunk = {"run": 0, "chunk": 1, "step": 3, "started": 10.0, "ended": 12.0, "slot": 0}
    (root / "timeline.json").write_text(json.dumps({"runs": [], "chunks": [chunk]}))
    return root


def log(root: Path, run: int, step: int, **metrics: float | str) -> None:
    """Have a run log something."""
    with (root / "runs" / str(run) / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"time": float(step), "step": step, "chunk": 1, "metrics": metrics}) + "\n")
