"""DPO and GRPO take ops as SFT does."""

from __future__ import annotations

from pathlib import Path

import pytest

from rfflow.runs.run import RunState
from tests.engine.test_ops_on_trainers import play
from tests.support.plain import train_alone
from tests.worker.training.test_alignment_snapshots import make


@pytest.mark.parametrize("name", ["DPO, precomputed", "GRPO"])
def test_stop_resume_clone_and_delete(name: str, tiny_model: Path, tmp_path: Path) -> None:
    """A stopped run goes on to the same bits, a cold clone equals its script alone, a warm one starts elsewhere."""
    spec = make(name, tiny_model, tmp_path)
    rate = ["trainer.args.learning_rate=0.003"]
    ops = {
        (0, 0): [{"op": "stop", "run": 0}, {"op": "clone", "run": 0, "overrides": rate, "warm_start": True}],
        (1, 0): {"op": "clone", "run": 1, "overrides": rate},
        (1, 1): [{"op": "resume", "run": 0}, {"op": "delete", "run": 1}],
    }
    experiment, together = play(tmp_path / "experiment", [spec, spec], ops)
    states = {run.number: run.state for run in experiment.runs}
    assert states == {0: RunState.COMPLETED, 1: RunState.DELETED, 2: RunState.COMPLETED, 3: RunState.COMPLETED}
    assert not together["0"].differences(train_alone(spec, tmp_path / "alone"))
    cold = train_alone(experiment.run(3).spec, tmp_path / "cold")
    assert not together["3"].differences(cold) and together["2"].differences(cold)
    assert experiment.run(2).first_chunk == 1
