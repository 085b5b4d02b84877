"""Nobody is ranked by what is older than the run's last boundary, wherever runs are ranked."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from rfflow.checkpointing import experiment_file
from rfflow.checkpointing.checkpointer import Checkpointer
from rfflow.config.spec import CheckpointSpec, Objective
from rfflow.control.ops import Clone
from rfflow.control.selection import Ranked, select
from rfflow.engine.engine import Engine
from rfflow.loggers.tensorboard import TensorBoardLogger, _ordered
from rfflow.policies import Decision, Halving, Median, Scene
from rfflow.policies.runner import PolicyRunner
from rfflow.policies.scene import RunView
from rfflow.runs.chunks import ChunkResult
from rfflow.runs.paths import ExperimentPaths
from rfflow.runs.run import Run
from rfflow.tracking.layout import live_table, ranking
from rfflow.tracking.metrics_log import MetricsLog
from rfflow.tracking.runs_csv import RunsTable
from rfflow.tracking.table import LiveTable
from rfflow.tracking.timeline import Timeline
from tests.runs.test_run import make_run
from tests.support.toy import STEPS_A_CHUNK, ToyTrainee, toy_engine, toy_spec

LOSS = {0: 2.0, 1: 1.0}
UNTRAINED = {0: 3.0, 1: 4.0}
"""By run: whoever is ranked by the evaluation of step 0 gets the order wrong."""


class OnceEvaluated(ToyTrainee):
    """Evaluates at step 0, in the middle of its second chunk, and never at a chunk's end."""

    def advance(self) -> Any:
        boundary, number = super().advance(), self.run.number
        step = boundary.step
        logs = [(step, {"loss": 9.0 - number, "grad_norm": 1.0})]
        if step <= 2 * STEPS_A_CHUNK:
            logs.insert(0, (0 if step == STEPS_A_CHUNK else step - 1, {"eval_loss": UNTRAINED[number]}))
        return replace(boundary, logs=tuple(logs), metrics={"loss": LOSS[number]})


class Watch:
    """A policy that keeps what it sees."""

    def __init__(self) -> None:
        self.scenes: list[Scene] = []

    def decide(self, scene: Scene) -> Sequence[Decision]:
        self.scenes.append(scene)
        return []


@pytest.fixture
def scenes(monkeypatch: pytest.MonkeyPatch) -> list[Scene]:
    watch = Watch()
    monkeypatch.setattr("rfflow.policies.runner.make_policy", lambda node: (watch, "watch", False))
    return watch.scenes


def experiment(root: Path, *callbacks: Any, keep: Sequence[str] = ("best", "final")) -> Engine:
    """Return an experiment of two such runs, with a policy that watches."""
    engine = toy_engine(root, (), callbacks, checkpoint=CheckpointSpec(keep=tuple(keep)))
    engine.slots.worker._make_session = OnceEvaluated
    engine.experiment.spec = replace(engine.experiment.spec, policy={"_target_": "tests.stories.test_ranking.Watch"})
    for number in LOSS:
        engine.add(toy_spec(chunks=3), number)
    return engine


def test_the_training_loss_ranks_everywhere_where_the_last_chunk_was_not_evaluated(
    tmp_path: Path, scenes: list[Scene]
) -> None:
    console = Console(file=(tmp_path / "out").open("w"), width=100)
    engine = experiment(tmp_path / "e", RunsTable(), MetricsLog(), Timeline(picture=False), LiveTable(console=console))
    engine.run()
    runs, objective = engine.experiment.runs, engine.experiment.spec.objective
    try:
        assert [run.number for run in engine.experiment.ranked()] == [1, 0]
        assert [engine.objective(run) for run in runs] == [2.0, 1.0], "what Hydra's sweepers are told"
        table = ranking(engine.experiment, 100).plain
        assert "ranked by loss, as nothing was evaluated" in table and "★ 1" in table and "eval_loss" not in table
        with console.capture() as shown:
            console.print(live_table(engine.experiment, console))
        assert "eval_loss" not in shown.get()
        clone = Clone(Ranked("best", 1), ("lr=2",))
        assert select(clone, runs, objective) == (1,)
        assert select(replace(clone, target=Ranked("worst", 1)), runs, objective) == (0,)
        assert scenes[-1].objective == objective
        for scene in scenes:
            for run in scene.runs:
                assert [objective.value(metrics) for metrics in run.history] == [LOSS[run.number]] * run.chunk
                assert all("eval_loss" not in metrics and "grad_norm" in metrics for metrics in run.history)
        assert [run.number for run in scenes[-1].ranked_at(2)] == [1, 0]
        with (tmp_path / "e" / "runs.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [float(row["objective"]) for row in rows] == [2.0, 1.0]
        assert not any(row.get("eval_loss") for row in rows), "nor by a notebook that sorts by the column"
        status = yaml.safe_load((tmp_path / "e" / "control" / "status.yaml").read_text())
        assert all("eval_loss" not in run["metrics"] for run in status["runs"])
    finally:
        engine.close()


def test_a_replay_sees_what_the_policy_saw(tmp_path: Path, scenes: list[Scene]) -> None:
    """But for the loss: that of a log is of its steps, and here it is another one than the chunk's."""
    from rfflow.policies.record import read_record

    engine = experiment(tmp_path / "e", RunsTable(), MetricsLog(), Timeline(picture=False))
    engine.run()
    engine.close()
    seen = {run.number: [dict(metrics) | {"loss": 0} for metrics in run.history] for run in scenes[-1].runs}
    curves = read_record(tmp_path / "e").curves
    assert {c.number: [dict(metrics) | {"loss": 0} for metrics in c.metrics] for c in curves} == seen


def test_after_a_kill_a_value_is_as_old_as_before(tmp_path: Path) -> None:
    """A run that is saved in the middle of a chunk, where its last evaluation still counts."""
    run, again = make_run(), make_run()
    run.reach(3, {"eval_loss": 1.0})
    run.chunks.append(ChunkResult(0, 0, 3, dict(run.metrics), 0, 1))
    run.step = 4
    run.note({"grad_norm": 2.0}, 4)
    progress = experiment_file.progress_of(run)
    checkpoint: Any = type("Checkpoint", (), {"progress": progress, "step": 4})
    Checkpointer._take_over(type("Checkpointer", (), {"_saved_step": {}})(), again, checkpoint)  # type: ignore[arg-type]
    for each in (run, again):
        each.reach(6, {"loss": 3.0})
    assert run.metrics == again.metrics == {"grad_norm": 2.0, "loss": 3.0}


def test_hparams_have_no_column_of_the_untrained_model_and_begin_with_what_ranks(tmp_path: Path) -> None:
    logger = TensorBoardLogger()
    logger._runs = {"0": make_run(0)}
    logger._writer = lambda *_, **__: type("Writer", (), {"add_scalar": lambda *_: None})()  # type: ignore[method-assign,assignment]
    logger.log_metrics({"0/eval/loss": 3.0}, 0)
    logger.log_metrics({"0/train/loss": 2.0}, 3)
    assert list(logger._metrics) == ["train/loss"]
    tags = dict.fromkeys(["eval/loss", "train/loss"])
    always = ["chunk", "state"]
    assert _ordered(tags, Objective().standing([{"loss": 1.0}])) == ["train/loss", "eval/loss", *always]
    evaluated = Objective().standing([{"loss": 1.0, "eval_loss": 1.0}])
    assert _ordered(tags, evaluated) == ["eval/loss", "train/loss", *always]


def test_the_best_checkpoint_is_by_what_ranks(tmp_path: Path) -> None:
    """By a metric that the trainer logs, too, which is in the chunk's result only if all that was known is."""
    chunks = [ChunkResult(0, n, 3 * n + 3, {"loss": 1.0, "reward": reward}, 0, 1) for n, reward in enumerate((2, 5, 4))]
    run = make_run()
    run.chunks = chunks
    engine = toy_engine(tmp_path)
    engine.experiment.spec = replace(engine.experiment.spec, objective=Objective("reward", "maximize"))
    assert engine._checkpointer._best_step(run, [9, 6, 3]) == 6
    engine.close()


def test_a_stopped_run_is_named_only_where_it_is_the_best(tmp_path: Path) -> None:
    """Nobody is, where nobody can be ranked."""
    from rfflow.tracking.layout import leader

    engine = toy_engine(tmp_path)
    engine.experiment.runs += [make_run(0), make_run(1)]
    assert leader(engine.experiment) is None
    engine.experiment.runs[1].metrics["loss"] = 2.0
    assert leader(engine.experiment) is engine.experiment.runs[1]
    engine.close()


# --- what a run keeps -------------------------------------------------------------------------------------------------


def test_an_untrained_run_says_nothing() -> None:
    run = make_run()
    run.note({"eval_loss": 3.0}, 0)
    assert run.metrics == {}


def test_a_boundary_forgets_what_is_older() -> None:
    """An evaluation must be of its step; what a trainer logs of its steps must be of the chunk."""
    run = make_run()
    run.note({"reward": 1.0, "eval_loss": 3.0, "once": 1.0}, 2)
    assert run.metrics["eval_loss"] == 3.0, "until the boundary it is the newest there is"
    run.reach(4, {"loss": 2.0}, {"reward": 5.0, "entropy": 6.0})
    assert run.metrics == {"reward": 1.0, "once": 1.0, "loss": 2.0, "entropy": 6.0}
    run.chunks.append(ChunkResult(0, 0, 4, dict(run.metrics), 0, 1))
    run.note({"eval_loss": 1.0}, 8)
    run.reach(8, {"loss": 1.5}, {"reward": 7.0})
    assert run.metrics == {"eval_loss": 1.0, "reward": 7.0, "loss": 1.5}


def test_a_loss_that_stands_in_is_compared_with_its_own_kind() -> None:
    runs = [make_run(0, eval_loss=2.0, loss=5.0), make_run(1, loss=1.0), make_run(2, eval_loss=3.0)]
    by = Ranked("best", 3)
    assert select(Clone(by, ("lr=2",)), _able(runs), Objective()) == (0, 2, 1)
    assert select(Clone(replace(by, end="worst"), ("lr=2",)), _able(runs), Objective()) == (2, 0, 1)


def _able(runs: Sequence[Run]) -> Sequence[Run]:
    return runs


# --- policies ---------------------------------------------------------------------------------------------------------


def scene(histories: Sequence[Sequence[Mapping[str, float]]], objective: Objective) -> Scene:
    views = [RunView(n, "running", 4, tuple(history)) for n, history in enumerate(histories)]
    return Scene(tuple(views), objective)


def test_halving_stops_nobody_where_nobody_can_be_ranked() -> None:
    histories = [[{"loss": 1.0}], [{"loss": 2.0}]]
    assert Halving().decide(scene(histories, Objective("eval_accuracy", "maximize"))) == []
    assert len(Halving().decide(scene(histories, Objective()))) == 1


def test_the_median_is_of_one_kind_of_loss() -> None:
    """Training losses of the chunks that were not evaluated do not count as evaluations."""
    low = {"loss": 0.1}
    histories = [[low, {"eval_loss": 5.0}], [{"loss": 9.0}, {"eval_loss": 2.0}], [{"loss": 9.0}, {"eval_loss": 2.0}]]
    decisions = Median(min_chunks=2, min_runs=3).decide(scene(histories, Objective()))
    assert [decision.op.target.to_document() for decision in decisions] == [0]


def test_what_a_policy_sees_is_what_the_chunks_hold(tmp_path: Path, scenes: list[Scene]) -> None:
    """So it sees the same after a kill, of which the chunks are what is left."""
    engine = experiment(tmp_path / "e")
    engine.run()
    other = PolicyRunner({"_target_": "tests.stories.test_ranking.Watch"}, engine.experiment)
    assert [run.history for run in other._scene().runs] == [run.history for run in scenes[-1].runs]
    state = experiment_file.read(ExperimentPaths(tmp_path / "e").state)
    engine.close()
    assert state is not None
    kept = [tuple(chunk.metrics for chunk in run.chunks) for run in state.runs]
    assert kept == [run.history for run in scenes[-1].runs]
