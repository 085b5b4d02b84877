"""Replaying a record: the same decisions as in the engine, and in words what would have been saved and lost."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rfflow import __main__ as cli
from rfflow.checkpointing import experiment_file
from rfflow.config import files
from rfflow.config.spec import ControlSpec, ExperimentSpec, Objective
from rfflow.engine import restoring
from rfflow.engine.engine import Engine
from rfflow.errors import ConfigError, EngineError
from rfflow.policies import record, replay
from rfflow.runs.experiment import Callback, Experiment
from rfflow.runs.paths import ExperimentPaths
from tests.support.tiny import run_spec
from tests.support.toy import Dies, put, quick_inbox, toy_engine, toy_spec  # noqa: F401

pytestmark = pytest.mark.usefixtures("hydra_restore_singletons")

HALVING = {"_target_": "rfflow.policies.Halving"}
CALLBACKS = ("runs_csv.RunsTable", "metrics_log.MetricsLog", "timeline.Timeline")
NODES = {name.replace(".", "_"): {"_target_": f"rfflow.tracking.{name}"} for name in CALLBACKS}


class Person(Callback):
    """Gives ops after so many chunks."""

    def __init__(self, ops: Mapping[int, Mapping[str, Any]]):
        self.ops = ops
        self.chunks = 0

    def on_chunk_end(self, experiment: Experiment) -> None:
        self.chunks += 1
        if self.chunks in self.ops:
            put(experiment.paths.control, f"{self.chunks}.yaml", self.ops[self.chunks])


def record_experiment(
    root: Path,
    runs: int = 4,
    ops: Mapping[int, Mapping[str, Any]] | None = None,
    policy: Any = None,
    *,
    fails: Mapping[int, int] | None = None,
    dies_after: int | None = None,
) -> Path:
    """Run an experiment of toys to the end, or go on with it; what they log is always 1.

    Args:
        fails: the chunk (from 0) in which a run raises.
        dies_after: chunks after which the process ends.
    """
    from rfflow.tracking.metrics_log import MetricsLog
    from rfflow.tracking.runs_csv import RunsTable
    from rfflow.tracking.timeline import Timeline

    sinks = [RunsTable(), MetricsLog(), Timeline(picture=False), Person(ops or {})]
    engine = toy_engine(root, (), [*sinks, *([] if dies_after is None else [Dies(dies_after)])])
    engine.experiment.spec = replace(engine.experiment.spec, policy=policy)
    state = experiment_file.read(ExperimentPaths(root).state)
    if state is None:
        for number in range(runs):
            engine.add(toy_spec(**({"fails_at": fails[number]} if number in (fails or {}) else {})), number)
    else:
        engine.go_on(state)
        for known in state.runs:
            config = json.loads(known.config)
            restoring.take_up(engine, engine.add(toy_spec(**config), known.number, known.overrides), known)
    try:
        with pytest.raises(EngineError) if dies_after is not None else contextlib.nullcontext():
            engine.run()
    finally:
        engine.close()
    return root


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    return record_experiment(tmp_path / "experiment")


def test_it_says_what_would_have_been_chosen_saved_and_lost(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replay.main([str(recorded), "policy=halving"], files.CONF) == 0
    out = capsys.readouterr().out
    assert "4 runs, 16 chunks recorded" in out
    assert "  stop run 2: place 3 of 4 after chunk 1; 2 go on" in out
    assert "Saved: 50 % of the chunks (8 of 16)" in out and "of the time on the device" in out
    assert "Chosen: run 0 with loss 1 after 4 chunks. It is the best of all" in out


def test_policies_can_be_compared_by_a_sweep(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replay.main([str(recorded), "policy=halving", "policy.eta=2,4", "policy.min_chunks=2"], files.CONF) == 0
    out = capsys.readouterr().out
    assert [line.split(" over ")[0] for line in out.splitlines() if " over " in line] == [
        "policy=halving policy.eta=2 policy.min_chunks=2",
        "policy=halving policy.eta=4 policy.min_chunks=2",
    ]


def test_nothing_to_replay_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replay.main([str(tmp_path), "policy=halving"], files.CONF) == 1
    assert "no experiment's directory: it has no runs.csv" in capsys.readouterr().err
    assert replay.main([str(tmp_path)], files.CONF) == 2
    assert "rfflow replay EXPERIMENT policy=NAME" in capsys.readouterr().err
    (tmp_path / "runs.csv").write_text("run,parent,chunks\n0,,4\n")
    with pytest.raises(ConfigError, match="holds no metrics"):
        record.read_record(tmp_path)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["outputs/sfd", "policy=halving"], "outputs/sfd: there is no such directory. Did you mean 'outputs/sft'"),
        (["outputs/sft", "policy=halving"], "no experiment's directory. The newest one in it: outputs/sft/2026"),
        (["outputs/sft/2026", "policy=halvin"], "There is no policy 'halvin'. Did you mean policy=halving?"),
        (["outputs/sft/2026", "policy=none"], "policy=none would have changed nothing"),
        (["outputs/sft/2026", "policy=halving", "policy.etta=3"], "There is no policy.etta. Did you mean policy.eta="),
        (["outputs/sft/2026", "policy=halving", "policy.eta=1"], "policy.eta is 1"),
        (
            ["outputs/sft/2026", "policy=halving", "objective.metric=los"],
            "objective.metric is 'los', which no run has logged. Did you mean 'loss'? Logged: loss.",
        ),
        (
            ["outputs/sft/2026", "policy=rules", 'policy.rules=[{name: sick, when: "lss > 3", do: stop}]'],
            "Rule 'sick' reads 'lss', which no run has logged. Did you mean 'loss'? Logged: loss.",
        ),
        (
            ["outputs/sft/2026", "policy=rules", 'policy.rules=[{name: sick, when: "loss >", do: stop}]'],
            "Rule 'sick': when: 'loss >' is not an expression",
        ),
    ],
)
def test_what_cannot_be_replayed_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    record_experiment(tmp_path / "outputs/sft/2026", runs=1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["rfflow", "replay", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    printed = capsys.readouterr()
    assert (end.value.code, printed.out) == (1, "") and said in printed.err


@pytest.mark.usefixtures("quick_inbox")
def test_an_experiment_may_have_failed_in_part_been_killed_and_gone_on_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run 0 leads and fails in its third chunk, run 3 is deleted, run 1 cloned; the process dies, another goes on."""
    root, fails = tmp_path / "experiment", {0: 2}
    ops = {4: {"op": "delete", "run": 3}, 5: {"op": "clone", "run": 1, "overrides": ["lr=5"]}}
    record_experiment(root, ops=ops, fails=fails, dies_after=6)
    assert replay.main([str(root), "policy=halving"], files.CONF) == 0
    out = capsys.readouterr().out
    assert "4 runs, 6 chunks recorded" in out
    assert "Not over: 0, 1, 2, 4. What is said holds for the chunks that are there by now." in out
    assert "Left out, because they have not ended a chunk: 4." in out
    record_experiment(root, fails=fails)
    whole = record_experiment(tmp_path / "whole", ops=ops, fails=fails)
    assert record.read_record(root).curves == record.read_record(whole).curves
    assert [(c.number, len(c.metrics), c.fails_at) for c in record.read_record(root).curves] == [
        (0, 2, 2),
        (1, 4, None),
        (2, 4, None),
        (3, 1, None),
        (4, 4, None),
    ]
    assert replay.main([str(root), "policy=halving", "policy.min_chunks=2"], files.CONF) == 0
    out = capsys.readouterr().out
    assert "5 runs, 15 chunks recorded" in out and "Not over" not in out
    assert "Chosen: run 1 with loss 1 after 4 chunks. It is the best of all runs, each as far" in out, "0 failed"
    assert "Known only as far as they were trained, which is not to the end: 0, 3." in out


@pytest.mark.usefixtures("quick_inbox")
def test_clones_that_people_made_are_replayed_from_where_they_were_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run 0 is cloned warm after its first chunk, run 1 cold after its second, and the clone of run 0 once more."""
    ops = {
        2: {"op": "clone", "run": 0, "overrides": ["lr=5"], "warm_start": True},
        5: [{"op": "clone", "run": 1, "overrides": ["lr=6"]}, {"op": "clone", "run": 2, "overrides": ["lr=7"]}],
    }
    root = record_experiment(tmp_path / "experiment", runs=2, ops=ops)
    by_number = {curve.number: curve for curve in record.read_record(root).curves}
    assert {number: (c.parent, c.after, c.age) for number, c in by_number.items() if c.parent is not None} == {
        2: (0, {0: 1, 1: 1}, 1),
        3: (1, {0: 2, 1: 2, 2: 1}, 0),
        4: (2, {0: 2, 1: 2, 2: 1}, 0),
    }
    watch = {"_target_": "rfflow.policies.Rules", "rules": [{"name": "none", "when": "loss < 0", "do": "stop"}]}
    outcome = replay.replay(record.read_record(root), watch, Objective())
    with (root / "timeline.json").open() as file:
        assert outcome.order == [(c["run"], c["chunk"] - 1) for c in json.load(file)["chunks"]]
    stop = '{name: early, when: "number == 1", do: stop}'
    assert replay.main([str(root), "policy=rules", f"policy.rules=[{stop}]"], files.CONF) == 0
    out = capsys.readouterr().out
    assert "5 runs, 20 chunks recorded" in out
    assert "Clones that people made, as they were made: 2, 4." in out
    assert "Clones of runs that would not have come that far, so never made: 3." in out
    assert "Saved: 35 % of the chunks (7 of 20)" in out


def test_clones_that_a_policy_made_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rule = {"name": "refine", "at_chunk": 2, "do": "clone", "overrides": ["lr=${chunk}"]}
    root = record_experiment(
        tmp_path / "experiment", runs=2, policy={"_target_": "rfflow.policies.Rules", "rules": [rule]}
    )
    assert replay.main([str(root), "policy=halving"], files.CONF) == 0
    out = capsys.readouterr().out
    assert "2 runs, 8 chunks recorded" in out and "Left out: 2 clones that a policy made, or of those: 2, 3." in out


def test_a_torn_line_and_a_diverged_value_are_read(tmp_path: Path) -> None:
    root = record_experiment(tmp_path / "experiment", runs=1)
    path = ExperimentPaths(root).run(0).metrics
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, '{"time": 1, "step": 12, "chunk": 4, "metrics": {"loss": "NaN"}}', '{"tim']))
    (curve,) = record.read_record(root).curves
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
    outcome = replay.replay(record.read_record(tmp_path / "all"), HALVING, Objective())
    assert {run.number: (run.state, run.chunk) for run in outcome.scene.runs} == {
        run.number: (run.state.value, len(run.chunks)) for run in steered.experiment.runs
    }
    assert sorted(run.state.value for run in steered.experiment.runs) == ["completed"] + ["stopped"] * 3
