"""The files of an experiment, without the experiment."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import yaml

from rfflow.checkpointing import experiment_file
from rfflow.checkpointing.experiment_file import RunRecord, SavedExperiment
from rfflow.config.files import CONF
from rfflow.control.journal import Entry, Journal
from rfflow.control.ownership import Lock, lock_of_experiment
from rfflow.control.status import RunStatus, Status, StatusFile
from rfflow.runs.run import RunState


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


EPOCH = 1_700_000_000
LOSSES = {0: (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 100.0), 1: (9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0)}
"""Of the first two runs of :func:`make_full`, step by step; two steps are a chunk."""
CLONES = (3.0, 2.5, 2.0, 1.5)
"""Of the clone of the first, after two chunks of that."""


NARROW = {"activations": "every 3rd", "activations_why": "kept they would take 9 GB"}


def make_full(root: Path) -> Path:
    """Write an experiment that has something of all that the page shows; return its directory.

    Two runs of different batch sizes, on a slot each, a clone of the first that started warm, one that has failed of a
    loss that is no number, and one that waits; names with markup in them.
    """
    since = "2026-01-01T10:00:00.000+00:00"
    metrics = [
        {"loss": 100.0, "eval_loss": 3.5, MARKUP: 1.0},
        {"loss": 9.0, "eval_loss": 3.25},
        {"loss": 1.5, "eval_loss": 3.0},
        {"loss": float("nan"), "eval_loss": float("nan")},
        {},
    ]
    runs = (
        RunStatus(0, "running", ("+recipe=sft", "lr=1e-2"), 4, 8, 8, 16, metrics[0], slot=0, since=since, **NARROW),
        RunStatus(1, "stopped", ("+recipe=sft", "lr=2e-3"), 4, 8, 8, 16, metrics[1], slot=1),
        RunStatus(2, "queued", ("+recipe=sft", "lr=3e-4", "r=16"), 2, 8, 4, 16, metrics[2], 0, 2, slot=0),
        RunStatus(3, "failed", ("+recipe=sft", "lr=auto"), 1, 8, 2, 16, metrics[3], slot=1),
        RunStatus(4, "queued", ("+recipe=sft", "lr=1e-1", f"x={MARKUP}")),
    )
    (root / "control").mkdir(parents=True)
    StatusFile(root / "control").write(Status(str(root), runs, slots=2))
    (root / "multirun.yaml").write_text(yaml.safe_dump({"policy": {"_target_": "rfflow.policies.halving.Halving"}}))
    records = []
    for run in runs:
        own = {"lr": run.overrides[1].partition("=")[2], "trainer": {"args": {"seed": 1}}, MARKUP: MARKUP}
        own["trainer"]["args"]["per_device_train_batch_size"] = 4 if run.number == 1 else 2
        records.append(
            RunRecord(
                run.number, RunState(run.state), run.overrides, None, f"runs/{run.number}", config=json.dumps(own)
            )
        )
        (root / "runs" / str(run.number)).mkdir(parents=True)
    saved = SavedExperiment("sft", EPOCH, tuple(records))
    experiment_file.write(root / "experiment.json", saved, {}, is_first=True)
    chunks = []
    for run, losses in ((0, LOSSES[0]), (1, LOSSES[1]), (2, CLONES), (3, (2.0, 2.0))):
        with (root / "runs" / str(run) / "metrics.jsonl").open("w") as file:
            for step, loss in enumerate(losses, 1):
                at = EPOCH + 100 * step + run  # as others of their clock have no moment in common
                line = {"time": at, "step": step, "chunk": (step + 1) // 2, "metrics": {"loss": loss, MARKUP: loss}}
                if step % 2 == 0:
                    line["metrics"] |= {"eval_loss": 4 - step / 16}
                    chunks.append({"run": run, "chunk": step // 2, "step": step, "slot": run % 2})
                    chunks[-1] |= {"started": at - 50.0, "ended": at - 10.0}
                file.write(json.dumps(line) + "\n")
    (root / "timeline.json").write_text(json.dumps({"runs": [], "chunks": chunks}))
    Journal(root / "ops.jsonl").append(
        Entry("clone", 0, "applied", "Run 0 was cloned as run 2 from its weights.", file="x.yaml", clone=2, time=since),
        Entry("stop", 1, "applied", f"Run 1 was stopped: worse than run 0 {MARKUP}", by="policy/Halving"),
        Entry("stop", 3, "refused", "Run 3 is failed.", file="20260101-100000-000000000-stop-tab.yaml"),
    )
    for run, answer in ((0, "Because."), (1, f"So {MARKUP}")):
        lines = [
            {"step": 2 * chunk, "chunk": chunk, "row": row, "prompt": f"Why {row}?", "answer": f"{answer} {chunk}"}
            for chunk in (1, 2)
            for row in (0, 1)
        ]
        text = "".join(json.dumps({**line, "reference": "It is so."}) + "\n" for line in lines)
        (root / "runs" / str(run) / "generations.jsonl").write_text(text)
    (root / "runs/0/run.log").write_text(f"first line {MARKUP}\nlast line\n")
    return root


MARKUP = "<img src=x onerror=document.title='taken'>"


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
