"""Real runs in MLflow, Weights & Biases and Trackio at once: cloned, killed, gone on with; nothing twice."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rfflow.control.asking import drop, wait_for_reply
from rfflow.control.ownership import living_owner

for _name in ("mlflow", "wandb", "trackio"):
    pytest.importorskip(_name, reason=f"NOT TESTED: {_name}, which is not installed")
pytestmark = pytest.mark.slow  # it starts rfflow twice, and each time all three of them
STEPS, CHUNKS = 32, 4


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Where trackers keep what they get, as a user without any account."""
    left_out = ("WANDB_API_KEY", "WANDB_BASE_URL", "TRACKIO_SERVER_URL", "TRACKIO_SPACE_ID", "MLFLOW_TRACKING_URI")
    given = {key: value for key, value in os.environ.items() if key not in left_out}
    given |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "NETRC": str(tmp_path / "netrc")}
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)])
    return given | {"TRACKIO_DIR": str(tmp_path / "trackio"), "PYTHONPATH": path}


@contextlib.contextmanager
def rfflow(folder: Path, environment: dict[str, str], *words: str) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / "said.txt").open("ab") as output:
        running = subprocess.Popen(
            [sys.executable, "-m", "rfflow", *words], cwd=folder, env=environment, stdout=output, stderr=output
        )
    try:
        yield running
    finally:
        running.kill()
        running.wait()


def trained(root: Path, run: int) -> int:
    """Return how many chunks a run has trained."""
    with contextlib.suppress(OSError, ValueError):
        return sum(chunk["run"] == run for chunk in json.loads((root / "timeline.json").read_text())["chunks"])
    return 0


def wait(running: subprocess.Popen[bytes], folder: Path, until: Any) -> None:
    while not until():
        assert running.poll() is None, (folder / "said.txt").read_text()[-4000:]
        time.sleep(0.05)


def logged(root: Path, run: int) -> list[tuple[int, float]]:
    """Return the losses that a run has logged."""
    lines = map(json.loads, (root / "runs" / str(run) / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["metrics"]["loss"]) for line in lines if "loss" in line["metrics"]]


def of_mlflow(folder: Path) -> dict[str, Any]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("sft").experiment_id])
    found = {run.data.tags["rfflow.run"]: run for run in runs if run.data.tags["rfflow.run"] != "all"}
    assert len(runs) == len(found) + 1 and {run.info.status for run in runs} == {"FINISHED"}

    def points(run: Any, key: str) -> list[tuple[int, float]]:
        return sorted((point.step, point.value) for point in client.get_metric_history(run.info.run_id, key))

    assert {run.data.tags.get("rfflow.parent") for run in found.values()} == {None, "0"}
    assert points(found["2"], "by_chunk/train/loss")[0][0] > 1, "behind its parent's"
    return {number: points(run, "train/loss") for number, run in found.items()}


def of_wandb(folder: Path) -> dict[str, Any]:
    from tests.loggers.test_wandb import read_all

    runs = read_all(folder)
    assert {run.exits[-1] for run in runs.values()} == {0}
    return {number: sorted(run.points("train/loss")) for number, run in runs.items() if number != "all"}


def of_trackio(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with contextlib.closing(sqlite3.connect(folder / "trackio" / "sft.db")) as base:
        for name, step, values in base.execute("select run_name, step, metrics from metrics"):
            loss = json.loads(values).get("train/loss")
            if loss is not None:
                found.setdefault(name.partition(" ")[0], []).append((step, loss))
    return {number: sorted(points) for number, points in found.items()}


def test_a_killed_experiment_goes_on_in_every_tracker(
    tiny_model: Path, tiny_data: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    root = tmp_path / "outputs" / "sft" / "one"
    words = [f"hydra.sweep.dir={root}", "model=hub", f"model.name={tiny_model}", "dataset=local"]
    words += [f"dataset.path={tiny_data}", "dataset.eval_size=8", f"chunks={CHUNKS}", f"trainer.args.max_steps={STEPS}"]
    words += ["trainer.args.logging_steps=1", "peft=lora_small", "loggers=[default,mlflow,wandb,trackio]"]
    with rfflow(tmp_path, environment, "+recipe=sft", "--multirun", "lr=1e-3,1e-4", *words) as running:
        wait(running, tmp_path, lambda: living_owner(root / "control") and trained(root, 0))
        clone = {"op": "clone", "run": 0, "overrides": ["lr=5e-4"], "warm_start": True}
        answer = wait_for_reply(root / "control", drop(root / "control", clone), 120)
        assert answer is not None and answer.is_applied, answer
        wait(running, tmp_path, lambda: trained(root, 2))
        running.send_signal(signal.SIGKILL)
        running.wait()
    with rfflow(tmp_path, environment, f"resume={root}") as running:
        assert running.wait(300) == 0, (tmp_path / "said.txt").read_text()[-4000:]

    wanted = {str(run): logged(root, run) for run in range(3)}
    assert all(len(points) == STEPS for points in wanted.values())
    found = of_mlflow(tmp_path)
    for run, points in wanted.items():
        assert [step for step, _ in found[run]] == [step for step, _ in points], run
        assert [loss for _, loss in found[run]] == pytest.approx([loss for _, loss in points])
    for found in (of_wandb(tmp_path), of_trackio(tmp_path)):  # what they had not written yet, the kill has taken
        assert {*found} == {"0", "1", "2"}
        for run, points in found.items():
            assert len({step for step, _ in points}) == len(points), "nothing twice"
            assert [loss for _, loss in points] == pytest.approx([dict(wanted[run])[step] for step, _ in points])
    said = (tmp_path / "said.txt").read_text()
    assert "and all else goes on" not in said and "has missed" not in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["loggers=[default,wandb]", "loggers.wandb.mode=online"], "loggers.wandb: .* has no API key for https://"),
        (["loggers=[default,mlflow]", "loggers.mlflow.tracking_uri=http://127.0.0.1:9"], "does not answer"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_loaded(
    tmp_path: Path, environment: dict[str, str], words: list[str], said: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rfflow", "+recipe=sft", "--multirun", "lr=1e-3,1e-4", *words],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0 and re.search(said, " ".join(done.stderr.split())), done.stderr[-2000:]
    assert "Loading" not in done.stdout + done.stderr and not [*tmp_path.rglob("metrics.jsonl")]
