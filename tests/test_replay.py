"""Replaying a record: the same decisions as in the engine, and in words what would have been saved and lost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rfflow import __main__ as cli
from rfflow import replay
from rfflow.engine import Engine
from rfflow.errors import ConfigError
from rfflow.runs import ExperimentPaths
from rfflow.spec import ControlSpec, ExperimentSpec, Objective
from tests.tiny import run_spec
from tests.toy import toy_engine, toy_spec

pytestmark = pytest.mark.usefixtures("hydra_restore_singletons")

HALVING = {"_target_": "rfflow.policies.Halving"}
CALLBACKS = ("runs_csv.RunsTable", "metrics_log.MetricsLog", "timeline.Timeline")
NODES = {name.replace(".", "_"): {"_target_": f"rfflow.tracking.{name}"} for name in CALLBACKS}


def record(root: Path, runs: int = 4) -> Path:
    """Run an experiment of toys to the end; what they log is always 1."""
    from rfflow.tracking.metrics_log import MetricsLog
    from rfflow.tracking.runs_csv import RunsTable
    from rfflow.tracking.timeline import Timeline

    engine = toy_engine(root, [toy_spec() for _ in range(runs)], [RunsTable(), MetricsLog(), Timeline(picture=False)])
    engine.run()
    engine.close()
    return root


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    return record(tmp_path / "experiment")


def test_it_says_what_would_have_been_chosen_saved_and_lost(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replay.main([str(recorded), "policy=halving"], cli.CONF) == 0
    out = capsys.readouterr().out
    assert "4 runs, 16 chunks recorded" in out
    assert "  stop run 2: place 3 of 4 after chunk 1; 2 go on" in out
    assert "Saved: 50 % of the chunks (8 of 16)" in out and "of the time on the device" in out
    assert "Chosen: run 0 with eval_loss 1 after 4 chunks. It is the best of all" in out


def test_policies_can_be_compared_by_a_sweep(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replay.main([str(recorded), "policy=halving", "policy.eta=2,4", "policy.min_chunks=2"], cli.CONF) == 0
    out = capsys.readouterr().out
    assert [line.split(" over ")[0] for line in out.splitlines() if " over " in line] == [
        "policy=halving policy.eta=2 policy.min_chunks=2",
        "policy=halving policy.eta=4 policy.min_chunks=2",
    ]


def test_nothing_to_replay_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replay.main([str(tmp_path), "policy=halving"], cli.CONF) == 1
    assert "is no experiment's directory" in capsys.readouterr().err
    assert replay.main([str(tmp_path)], cli.CONF) == 2
    assert "usage: rfflow replay" in capsys.readouterr().err
    (tmp_path / "runs.csv").write_text("run,parent,chunks\n0,,4\n")
    with pytest.raises(ConfigError, match="holds no metrics"):
        replay.read_record(tmp_path)


def test_a_torn_line_and_a_diverged_value_are_read(tmp_path: Path) -> None:
    root = record(tmp_path / "experiment", runs=1)
    path = ExperimentPaths(root).run(0).metrics
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, '{"time": 1, "step": 12, "chunk": 4, "metrics": {"loss": "NaN"}}', '{"tim']))
    (curve,) = replay.read_record(root).curves
    assert len(curve.metrics) == 4 and curve.metrics[3]["loss"] != curve.metrics[3]["loss"]


def test_a_replay_decides_as_the_policy_did_on_real_trainers(tmp_path: Path, tiny_model: Path, tiny_data: Path) -> None:
    """Train four runs to the end, and again under halving: the replay of the first is the second."""

    def train(root: Path, policy: Mapping[str, Any] | None) -> Engine:
        spec = ExperimentSpec(
            "tiny", accelerator="cpu", control=ControlSpec(enabled=False), policy=policy, callbacks=NODES
        )
        engine = Engine(spec, ExperimentPaths(root))
        for number, rate in enumerate((1e-5, 5e-3, 1e-3, 2e-2)):
            args = {"learning_rate": rate, "max_steps": 8}
            data = replace(run_spec(tiny_model, tiny_data, args=args, chunks=12).dataset, max_samples=32, eval_size=8)
            engine.add(replace(run_spec(tiny_model, tiny_data, args=args, chunks=4), dataset=data), number)
        engine.run()
        engine.close()
        return engine

    train(tmp_path / "all", None)
    steered = train(tmp_path / "halved", HALVING)
    outcome = replay.replay(replay.read_record(tmp_path / "all"), HALVING, Objective())
    assert {run.number: (run.state, run.chunk) for run in outcome.scene.runs} == {
        run.number: (run.state.value, len(run.chunks)) for run in steered.experiment.runs
    }
    assert sorted(run.state.value for run in steered.experiment.runs) == ["completed"] + ["stopped"] * 3
