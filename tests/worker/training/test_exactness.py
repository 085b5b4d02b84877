"""The promise: a run inside an experiment ends as the same TRL script alone would, to the last bit."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import TrainerCallback

from rfflow.config.spec import ExperimentSpec, RunSpec
from rfflow.engine.engine import Engine
from rfflow.runs.paths import ExperimentPaths
from rfflow.runs.run import Run, RunState
from rfflow.worker.training.coroutine import TrainerCoroutine
from tests.support.plain import Outcome, train_alone
from tests.support.tiny import make_data, make_rows, run_spec, write_jsonl

Spec = Callable[..., RunSpec]


@pytest.fixture(scope="session")
def evaluation_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second file to evaluate on."""
    return make_data(tmp_path_factory.mktemp("evaluation") / "sums.jsonl", rows=12)


@pytest.fixture
def spec(tiny_model: Path, tiny_data: Path, evaluation_rows: Path) -> Spec:
    """Make a run on the tiny model, evaluated at each boundary unless the test says otherwise."""

    def make(evaluate: bool = True, **kwargs: object) -> RunSpec:
        dataset = {"eval_path": str(evaluation_rows)}
        return run_spec(tiny_model, tiny_data, evaluate=evaluate, dataset=dataset, **kwargs)  # type: ignore[arg-type]

    return make


@contextlib.contextmanager
def outcomes() -> Iterator[dict[str, Outcome]]:
    """Collect what each trainer of an experiment ended with, by its output directory's run number."""
    collected: dict[str, Outcome] = {}
    original = TrainerCoroutine._train

    def train(self: TrainerCoroutine) -> object:
        finished = original(self)
        collected[Path(self.trainer.args.output_dir).parent.name] = Outcome.of(self.trainer)
        return finished

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainerCoroutine, "_train", train)
        yield collected


def train_together(specs: Sequence[RunSpec], root: Path) -> tuple[list[Run], dict[str, Outcome]]:
    """Train all specs as one experiment."""
    engine = Engine(ExperimentSpec(name="test", accelerator="cpu"), ExperimentPaths(root))
    with outcomes() as collected:
        runs = [engine.add(spec, number) for number, spec in enumerate(specs)]
        engine.run()
    engine.close()
    return runs, collected


VARIANTS: dict[str, dict[str, object]] = {
    "as it is": {},
    "learning rate": {"args": {"learning_rate": 5e-3}},
    "rank and targets": {"peft": {"r": 8, "target_modules": "all-linear", "lora_dropout": 0.2}},
    "batch and accumulation": {"args": {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2}},
    "schedule": {"args": {"lr_scheduler_type": "cosine", "warmup_steps": 5, "weight_decay": 0.1, "max_grad_norm": 0.5}},
    "two epochs, sparse logs": {"args": {"num_train_epochs": 2, "logging_steps": 7}},
    "packing": {"args": {"packing": True, "packing_strategy": "wrapped", "max_length": 96}},
    "its own evaluations": {"args": {"eval_strategy": "steps", "eval_steps": 5}},
    "checkpointing and bias": {"args": {"activation_checkpointing": True}, "peft": {"bias": "all", "use_dora": True}},
    "schedule-free": {"args": {"optim": "schedule_free_adamw", "lr_scheduler_type": "constant"}},
    "every weight": {"peft": None, "args": {"max_steps": 10}},
}


@pytest.mark.parametrize(
    "evaluate", [pytest.param(False, marks=pytest.mark.slow), True], ids=["", "evaluated at boundaries"]
)
def test_interleaved_runs_equal_the_same_scripts_alone(spec: Spec, tmp_path: Path, evaluate: bool) -> None:
    """All variants at once on one base: weights, logged losses and the whole log history, bit for bit."""
    specs = [spec(evaluate=evaluate, chunks=4, **variant) for variant in VARIANTS.values()]
    if evaluate:  # before the first step as well, where what is the same for several is computed once
        specs = [_with(one, eval_on_start=True) for one in specs]
    runs, together = train_together(specs, tmp_path / "experiment")
    assert [run.state for run in runs] == [RunState.COMPLETED] * len(specs)
    for number, (name, variant) in enumerate(zip(VARIANTS, specs, strict=True)):
        alone = train_alone(variant, tmp_path / "alone" / str(number))
        assert not together[str(number)].differences(alone), name


def _with(spec: RunSpec, **args: object) -> RunSpec:
    return replace(spec, trainer=replace(spec.trainer, args={**spec.trainer.args, **args}))


class FailAt(TrainerCallback):
    """A user's callback with a bug that shows at one step."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args: object, state: object, control: object, **_: object) -> None:
        if state.global_step == self.step:  # type: ignore[attr-defined]
            raise RuntimeError("the user's bug")


def test_a_boundary_shows_the_mean_loss_of_its_chunk(spec: Spec, tmp_path: Path) -> None:
    """Whatever the trainer logs, and when: a single step's loss says more about its rows than about the run."""
    args = {"learning_rate": 1e-3}
    (often, seldom), together = train_together(
        [spec(args=args), spec(args={**args, "logging_steps": 7})], tmp_path / "experiment"
    )
    losses = [entry["loss"] for entry in together["0"].history if "loss" in entry]
    means = [sum(losses[first : first + 6]) / 6 for first in range(0, 24, 6)]
    assert [chunk.metrics["loss"] for chunk in often.chunks] == pytest.approx(means, rel=1e-5)
    assert [chunk.metrics["loss"] for chunk in seldom.chunks] == pytest.approx(means, rel=1e-5)


def test_a_failing_run_takes_nobody_with_it(spec: Spec, tmp_path: Path) -> None:
    """One run raises half-way; the runs beside it still equal their scripts alone, and its own log has the trace."""
    good = [spec(chunks=3, args={"learning_rate": 1e-3}), spec(chunks=5, args={"num_train_epochs": 2})]
    bad = spec(chunks=4)
    callback = {"_target_": "tests.worker.training.test_exactness.FailAt", "step": 9}
    bad = replace(bad, trainer=replace(bad.trainer, callbacks=(callback,)))
    runs, together = train_together([good[0], bad, good[1]], tmp_path / "experiment")
    assert [run.state for run in runs] == [RunState.COMPLETED, RunState.FAILED, RunState.COMPLETED]
    assert str(runs[1].error) == "the user's bug"
    assert "the user's bug" in runs[1].paths.log.read_text() and "FailAt" not in runs[0].paths.log.read_text()
    assert runs[1].chunks[-1].step == 6
    for number, variant in (("0", good[0]), ("2", good[1])):
        assert not together[number].differences(train_alone(variant, tmp_path / "alone" / number))


def test_the_comparison_notices_a_missing_context_switch(
    spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the switch of random generators the very same test fails: it is not blind."""
    monkeypatch.setattr("rfflow.worker.training.context.RandomState.restore", lambda self, device: None)
    variant = spec(chunks=4, evaluate=False)
    _, together = train_together([variant, variant], tmp_path / "experiment")
    assert together["0"].differences(train_alone(variant, tmp_path / "alone"))


@pytest.mark.parametrize("kind", ["SFT", "DPO"])
def test_rows_with_empty_text_are_trained_on_as_trl_does(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    """None is left out: steps, schedule and weights are those of TRL alone."""
    rows = [{**row, "prompt": row["prompt"] if index % 2 else ""} for index, row in enumerate(make_rows(12))]
    rows[5]["completion"] = ""
    if kind == "DPO":
        rows = [{"prompt": row["prompt"], "chosen": row["completion"], "rejected": "What?"} for row in rows]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    variant = run_spec(tiny_model, file, chunks=3, trainer=f"trl.{kind}Trainer", args_target=f"trl.{kind}Config")
    (run,), together = train_together([variant], tmp_path / "experiment")
    assert run.plan is not None and run.plan.steps == 3
    assert not together["0"].differences(train_alone(variant, tmp_path / "alone"))
