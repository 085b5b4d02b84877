"""The promise holds on several devices: where a run trains, and how often it moves, changes no bit of it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from rfflow.checkpointing.checkpoints import Checkpoints
from rfflow.config.spec import CheckpointSpec, ExperimentSpec, RunSpec
from rfflow.engine.engine import Engine
from rfflow.runs.paths import ExperimentPaths
from rfflow.runs.run import Run, RunState
from rfflow.slots.processes import ProcessSlots
from rfflow.slots.slots import Slots
from tests.support.tiny import run_spec
from tests.worker.training.test_snapshot_alignment import (
    dpo_spec,
    evaluation_pairs,
    evaluation_prompts,
    grpo_spec,
    pairs,
    prompts,
)

__all__ = ["dpo_spec", "evaluation_pairs", "evaluation_prompts", "grpo_spec", "pairs", "prompts"]

CLOCKS = ("runtime", "per_second", "generation_share", "step_time")


def train(specs: Sequence[RunSpec], root: Path, slots: Slots | None = None) -> list[Run]:
    log = {"_target_": "rfflow.tracking.metrics_log.MetricsLog"}
    kept = CheckpointSpec(keep=("last", "final"))
    spec = ExperimentSpec(name="test", accelerator="cpu", checkpoint=kept, callbacks={"log": log})
    engine = Engine(spec, ExperimentPaths(root), slots=slots)
    runs = [engine.add(each, number) for number, each in enumerate(specs)]
    engine.run()
    engine.close()
    return runs


def left_by(run: Run) -> dict[str, Any]:
    """Return what a run leaves, less what a clock has said."""
    weights = next(path for path in run.paths.final.iterdir() if path.name.endswith("model.safetensors"))
    lines = [json.loads(line) for line in run.paths.metrics.read_text().splitlines()]
    return {
        "weights": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "log": [without_clocks(line) for line in lines],
        "chunks": [(chunk.step, without_clocks(chunk.metrics)) for chunk in run.chunks],
    }


def optimizer_of(run: Run) -> Any:
    """Return the state of its optimizer at the last boundary, each tensor by its bits."""

    def plain(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return str(value.dtype), tuple(value.shape), hashlib.sha256(value.cpu().numpy().tobytes()).hexdigest()
        if isinstance(value, dict):
            return {str(key): plain(each) for key, each in value.items()}
        return [plain(each) for each in value] if isinstance(value, list | tuple) else value

    last = Checkpoints(run.paths.checkpoints).newest()
    assert last is not None, f"run {run.number} has left no checkpoint"
    return last.step, plain(torch.load(last.path / "optimizer.pt", map_location="cpu", weights_only=True))


def without_clocks(metrics: Any) -> dict[str, Any]:
    """Return them without what differs from day to day."""
    plain = {key: value for key, value in metrics.items() if not key.endswith(CLOCKS) and key != "time"}
    return {**plain, "metrics": without_clocks(plain["metrics"])} if "metrics" in plain else plain


def _processes(threads: dict[str, str], root: Path) -> Slots:
    return ProcessSlots(ExperimentSpec(name="test", accelerator="cpu"), [threads] * 2)


def _actors(threads: dict[str, str], root: Path) -> Slots:
    from rfflow.slots.cluster import join_cluster
    from rfflow.slots.ray import RaySlots

    spec = ExperimentSpec(name="test", accelerator="cpu", cluster="local", devices=2)
    return RaySlots(spec, join_cluster(spec, root, {**os.environ, **threads}))


@pytest.mark.parametrize("make_slots", [_processes, pytest.param(_actors, marks=pytest.mark.slow)])
def test_runs_that_move_end_as_in_one_process(
    make_slots: Callable[[dict[str, str], Path], Slots],
    tiny_model: Path,
    tiny_data: Path,
    dpo_spec: Callable[..., RunSpec],
    grpo_spec: Callable[..., RunSpec],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """SFT with a process for its rows, DPO, GRPO and every weight, on two devices, with a move at most boundaries."""
    monkeypatch.setattr("rfflow.scheduling.scheduler._SLACK", -1)  # nobody is at home anywhere
    caplog.set_level("INFO", "rfflow")
    specs = [
        run_spec(
            tiny_model, tiny_data, chunks=4, args={"dataloader_num_workers": 1, "activation_checkpointing": "auto"}
        ),
        dpo_spec(),
        grpo_spec(),
        run_spec(tiny_model, tiny_data, chunks=4, peft=None, args={"max_steps": 10}),
    ]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    expected = train(specs, tmp_path / "one")
    moved = train(specs, tmp_path / "two", make_slots(threads, tmp_path))
    assert [run.state for run in moved] == [RunState.COMPLETED] * 4, [run.error for run in moved]
    for alone, run in zip(expected, moved, strict=True):
        assert not differences(left_by(run), left_by(alone)), f"run {run.number}"
        assert not differences(optimizer_of(run), optimizer_of(alone)), f"run {run.number}"
    logs = [runs[0].paths.log.read_text() for runs in (expected, moved)]
    assert all("Activations are kept" in log for log in logs) and "Activations are kept" not in caplog.text


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Name what differs, all the way down."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = one.keys() | other.keys()
        return [line for key in sorted(keys) for line in differences(one.get(key), other.get(key), f"{where}/{key}")]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        return [
            line for n, pair in enumerate(zip(one, other, strict=True)) for line in differences(*pair, f"{where}/{n}")
        ]
    return [] if one == other else [f"{where}: {one} instead of {other}"]
