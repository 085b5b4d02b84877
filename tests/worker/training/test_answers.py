"""Evaluation by generation: scores and answers at every boundary, and not a trace of it in the training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rfflow import scores
from rfflow.config.spec import ControlSpec, ExperimentSpec, GenerateSpec, Objective, RunSpec
from rfflow.engine.engine import Engine
from rfflow.errors import ConfigError
from rfflow.runs.paths import ExperimentPaths
from rfflow.runs.run import Run, RunState
from rfflow.tracking.arguments import read_arguments
from tests.launch.test_cli import Shell
from tests.support.plain import train_alone
from tests.support.tiny import make_data, run_spec, write_jsonl
from tests.worker.training.test_exactness import outcomes, train_together

HERE = "tests.worker.training.test_answers"
Spec = Callable[..., RunSpec]


def length(predictions: Sequence[str], **_: Any) -> dict[str, float]:
    """A user's score, with two numbers."""
    return {"length": sum(map(len, predictions)) / len(predictions), "count": len(predictions)}


def broken(predictions: Sequence[str], references: Sequence[str], **_: Any) -> float:
    """A user's mistake."""
    return predictions[0] / 2  # type: ignore[operator]


@pytest.fixture
def spec(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> Spec:
    """Make a run that answers three rows."""
    rows = make_data(tmp_path / "eval.jsonl", rows=5)

    def make(rate: float = 1e-2, generate: dict[str, Any] | None = None, **kwargs: Any) -> RunSpec:
        values = {"samples": 3, "batch_size": 2, "max_new_tokens": 5, "scores": (f"{HERE}.length",), **(generate or {})}
        kwargs.setdefault("dataset", {"eval_path": str(rows)})
        run = run_spec(tiny_model, tiny_data, chunks=2, args={"learning_rate": rate, "max_steps": 12}, **kwargs)
        return replace(run, generate=GenerateSpec(**values))

    return make


def test_generating_moves_nothing(spec: Spec, tmp_path: Path) -> None:
    """Sampling too, with adapters and without: weights and log history equal TRL alone, to the last bit."""
    sampled = {"kwargs": {"do_sample": True, "temperature": 1.5}}
    specs = [spec(), spec(generate=sampled), spec(generate=sampled), spec(peft=None, evaluate=False)]
    runs, together = train_together(specs, tmp_path / "experiment")
    assert [(run.state, run.error) for run in runs] == [(RunState.COMPLETED, None)] * 4
    for number, variant in enumerate(specs):
        assert not together[str(number)].differences(train_alone(variant, tmp_path / "alone" / str(number)))
    assert all(run.metrics["eval_count"] == 3 and 0 < run.metrics["eval_length"] <= 5 for run in runs)
    assert runs[1].metrics["eval_length"] == runs[2].metrics["eval_length"]


def test_answers_stand_side_by_side_in_tensorboard(spec: Spec, tmp_path: Path) -> None:
    """Under the same tags for every run; and any score may rank the runs, in its direction."""
    logger = {"_target_": "rfflow.loggers.tensorboard.TensorBoardLogger"}
    experiment = ExperimentSpec(
        name="test",
        accelerator="cpu",
        objective=Objective("eval_length", "maximize"),
        control=ControlSpec(enabled=False),
        loggers={"tensorboard": logger},
    )
    engine = Engine(experiment, ExperimentPaths(tmp_path / "out"))
    for number, rate in enumerate((1e-3, 3e-1)):
        engine.add(spec(rate, generate={"shown": 2}), number)
    with outcomes():
        engine.run()
    engine.close()
    for run in engine.experiment.runs:
        events = EventAccumulator(str(ExperimentPaths(tmp_path / "out").curves(run.number))).Reload()
        assert {"answers/0/text_summary", "answers/1/text_summary"} <= set(events.Tags()["tensors"])
        assert "answers/2/text_summary" not in events.Tags()["tensors"]
        shown = events.Tensors("answers/0/text_summary")
        assert [entry.step for entry in shown] == [12]
        text = shown[0].tensor_proto.string_val[0].decode()
        assert "What is 1 plus 3?" in text and "**expected**" in text
    arguments = read_arguments(tmp_path / "out/arguments.json")
    assert arguments["trl.SFTConfig"]["max_steps"]["takes"] == ["int"] and arguments["peft.LoraConfig"]["r"]["help"]
    lengths = [run.metrics["eval_length"] for run in engine.experiment.ranked()]
    assert lengths == sorted(lengths, reverse=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"generate": {"kwargs": {"temperatur": 1}}},
            "temperatur is 1, but .* no 'temperatur'. Did you mean 'temperature'",
        ),
        ({"dataset": {}}, "evaluation.generate wants rows to answer"),
        ({"generate": {"scores": (f"{HERE}.broken",)}}, "The score broken raised TypeError: .* before training"),
        ({"generate": {"scores": ("rfflow.scores.rouge",)}}, r"scores\[0\] is 'rfflow.scores.rouge'.* 'rouge_l'"),
    ],
)
def test_what_cannot_be_scored_is_said_before_training(
    spec: Spec, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        train_together([spec(**change)], tmp_path / "experiment")


def test_conversations_are_answered_by_template(spec: Spec, tmp_path: Path) -> None:
    rows = [
        [{"role": "user", "content": f"Add {n}."}, {"role": "assistant", "content": f"It is {n}."}] for n in range(8)
    ]
    file = write_jsonl(tmp_path / "chats.jsonl", [{"messages": messages} for messages in rows])
    run = spec(generate={"scores": ("rfflow.scores.exact_match",)})
    run = replace(run, dataset=replace(run.dataset, path=str(file), eval_path=str(file)))
    (trained,), _ = train_together([run], tmp_path / "experiment")
    assert trained.state is RunState.COMPLETED, trained.error
    assert trained.metrics["eval_exact_match"] == 0.0


def test_the_scores() -> None:
    said, wanted = ["The cat sat.", "a  b"], ["the cat sat down.", "A b"]
    assert scores.exact_match(said, wanted) == 0.5
    assert scores.rouge_l(said, wanted) == pytest.approx((6 / 7 + 1) / 2)
    assert scores.rouge_l(["police killed the gunman"], ["police kill the gunman"]) == pytest.approx(3 / 4)
    assert scores.rouge_l(["", "b a", "x"], ["a", "a b", "x!"]) == pytest.approx((0 + 1 / 2 + 1) / 3)
    pytest.importorskip("sacrebleu")
    assert scores.bleu(wanted, wanted) == pytest.approx(100) and scores.bleu(["x"], ["y"]) < 1


@pytest.mark.usefixtures("hydra_restore_singletons")
def test_it_is_asked_for_by_its_figures(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    rfflow = Shell(capsys, monkeypatch)
    rfflow("+recipe=sft")
    rfflow("+recipe=sft", "evaluation.generate.samples=16", "evaluation.generate.temperature=0.5")
    off, on = (engine.runs[0].spec.generate for engine in rfflow.engines)
    assert off is None
    assert on == GenerateSpec(16, scores=("rfflow.scores.exact_match",), kwargs={"temperature": 0.5})
    said = rfflow("+recipe=sft", "evaluation.generate.samples=some")
    assert "evaluation.generate.samples is 'some'. Allowed: a whole number from 0 up" in said


def test_a_run_is_a_run(spec: Spec, tmp_path: Path) -> None:
    """What people read is not kept in the record of its chunks."""
    (run,), _ = train_together([spec()], tmp_path)
    assert isinstance(run, Run) and all(chunk.answers == () for chunk in run.chunks)
