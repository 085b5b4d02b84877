"""The files of an experiment, without the experiment."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import yaml

from rfflow.config.files import CONF
from rfflow.control.ownership import Lock, lock_of_experiment
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


@contextlib.contextmanager
def held(root: Path) -> Iterator[None]:
    """Hold an experiment as the process does that trains it."""
    locks = [lock_of_experiment(root), Lock(root / "control", root)]
    for lock in locks:
        lock.acquire()
    try:
        yield
    finally:
        for lock in locks:
            lock.release()


def composed(root: Path, *overrides: str) -> Path:
    """Make an experiment, as Hydra and rfflow leave it, that was started with one recipe; return its directory."""
    make_experiment(root)
    sources = [("pkg", "hydra.conf", "hydra"), ("file", str(CONF), "main"), ("structured", "", "schema")]
    hydra = {
        "runtime": {
            "config_sources": [{"schema": scheme, "path": path, "provider": who} for scheme, path, who in sources],
            "cwd": str(root),
        },
        "job": {"config_name": "config"},
        "overrides": {"hydra": [], "task": ["+recipe=sft", "lr=1e-3,1e-4"]},
    }
    (root / "multirun.yaml").write_text(yaml.safe_dump({"hydra": hydra}))
    for number, lr in enumerate(("0.001", "0.0001", "0.01", "0.1")):
        (root / "runs" / str(number) / ".hydra").mkdir(parents=True)
        job = ["+recipe=sft", f"lr={lr}", *overrides]
        (root / "runs" / str(number) / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(job))
    number = {"type": "float", "takes": ["float"], "choices": [], "default": 0.0, "help": "How much."}
    word = {"type": "str", "takes": ["str"], "choices": ["cosine", "linear"], "default": "linear", "help": ""}
    anything = {"type": "Any", "takes": [], "choices": [], "default": None, "help": ""}
    sft = dict.fromkeys(yaml.safe_load((CONF / "trainer" / "sft.yaml").read_text())["args"], anything)
    sft |= {"learning_rate": number, "max_grad_norm": number, "lr_scheduler_type": word, "warmup_steps": anything}
    sft |= {"activation_checkpointing": {"type": "bool", "takes": ["bool"], "choices": [], "default": True, "help": ""}}
    sft |= dict.fromkeys(yaml.safe_load((CONF / "recipe" / "sft.yaml").read_text())["trainer"]["args"], anything)
    (root / "arguments.json").write_text(json.dumps({"version": 1, "classes": {"trl.SFTConfig": sft}}))
    return root
