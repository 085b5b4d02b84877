"""``engine.fusion``: runs of an experiment go together by themselves, and nobody can tell by what comes of them."""

from __future__ import annotations

import logging
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from transformers import TrainerCallback

from rfflow.checkpointing.experiment_file import read
from rfflow.config.spec import CheckpointSpec, ControlSpec, ExperimentSpec, RunSpec
from rfflow.engine.engine import Engine
from rfflow.engine.interruption import Interrupted
from rfflow.runs.paths import ExperimentPaths
from rfflow.runs.run import Run, RunState
from rfflow.worker.gangs.calibration import Choice
from rfflow.worker.gangs.gang import Gang
from tests.support.plain import Outcome, train_alone
from tests.support.tiny import run_spec
from tests.worker.training.test_exactness import outcomes


def make_engine(root: Path, fusion: Literal["auto", "slice"] = "slice") -> Engine:
    spec = ExperimentSpec(
        name="test",
        accelerator="cpu",
        fusion=fusion,
        control=ControlSpec(enabled=False),
        checkpoint=CheckpointSpec(every=1),
    )
    return Engine(spec, ExperimentPaths(root))


def train(
    specs: list[RunSpec], root: Path, fusion: Literal["auto", "slice"] = "slice"
) -> tuple[list[Run], dict[str, Outcome]]:
    engine = make_engine(root, fusion)
    with outcomes() as collected:
        runs = [engine.add(spec, number) for number, spec in enumerate(specs)]
        engine.run()
    engine.close()
    return runs, collected


def test_what_qualifies_goes_together_and_the_rest_beside(
    tiny_model: Path,
    tiny_data: Path,
    tmp_path: Path,
    passes: list[tuple[int, ...]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One of them fails, one is DoRA and one trains every weight; all others end as alone, with evaluations."""
    caplog.set_level(logging.INFO, logger="rfflow")

    def spec(**kwargs: object) -> RunSpec:
        dataset = {"eval_path": str(tiny_data)}
        return run_spec(tiny_model, tiny_data, chunks=2, evaluate=True, dataset=dataset, **kwargs)  # type: ignore[arg-type]

    args = {"max_steps": 6}
    specs = [
        spec(args=args),
        spec(args={**args, "learning_rate": 1e-3}, peft={"r": 8, "target_modules": "all-linear"}),
        spec(args=args),
        spec(args=args, peft={"use_dora": True}),
        spec(args={"max_steps": 2}, peft=None),
    ]
    fails = {"_target_": "tests.worker.training.test_exactness.FailAt", "step": 2}
    specs[2] = replace(specs[2], trainer=replace(specs[2].trainer, callbacks=(fails,)))
    runs, together = train(specs, tmp_path / "experiment")
    assert [run.state for run in runs] == [RunState.COMPLETED] * 2 + [RunState.FAILED] + [RunState.COMPLETED] * 2
    assert (0, 1, 2) in passes
    assert set().union(*passes) == {0, 1, 2}
    for number in (0, 1, 3, 4):
        alone = train_alone(specs[number], tmp_path / "alone" / str(number))
        assert not together[str(number)].differences(alone), number
    assert "alone: peft.use_dora" in runs[3].paths.log.read_text()


@pytest.mark.parametrize(
    "is_faster",
    [True, *(pytest.param(each, marks=pytest.mark.slow) for each in (False, None))],
    ids=["faster", "slower", "other bits"],
)
def test_what_auto_chooses_changes_nothing_but_time(
    tiny_model: Path,
    tiny_data: Path,
    tmp_path: Path,
    passes: list[tuple[int, ...]],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    is_faster: bool | None,
) -> None:
    """It tries, says what it has found, and trains the same; where bits differ it does not go together."""
    caplog.set_level(logging.INFO, logger="rfflow")
    add = Choice.add

    def add_as_told(self: Choice, is_fused: bool, seconds: float, tokens: int) -> None:
        add(self, is_fused, tokens * (1.0 if is_fused is is_faster else 2.0), tokens)

    monkeypatch.setattr(Choice, "add", add_as_told)
    if is_faster is None:
        monkeypatch.setattr(Gang, "_is_exact_forward", lambda self, current, output, places: False)
    small = {"per_device_train_batch_size": 2}  # and no logs, for which a run would pause as the clock has it
    specs = [
        run_spec(
            tiny_model,
            tiny_data,
            chunks=2,
            evaluate=False,
            args={"max_steps": 40, "learning_rate": 1e-3 * (number + 1), "logging_steps": 1000, **small},
            dataset={},
        )
        for number in range(2)
    ]
    runs, together = train(specs, tmp_path / "experiment", "auto")
    assert [run.state for run in runs] == [RunState.COMPLETED] * 2
    said = {True: "go together: a token is", False: "go one by one: a token is", None: "would not have the bits"}
    assert said[is_faster] in caplog.text
    both = sum(len(one) == 2 for one in passes)
    assert both > 25 if is_faster else both < 15
    for number, one in enumerate(specs):
        assert not together[str(number)].differences(train_alone(one, tmp_path / "alone" / str(number)))


def test_each_has_its_own_seconds(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    """What passes take is shared by tokens: together runs had the device no longer than there was."""
    specs = [
        run_spec(
            tiny_model,
            tiny_data,
            chunks=1,
            evaluate=False,
            args={"per_device_train_batch_size": rows, "max_steps": 4},
        )
        for rows in (1, 8)
    ]
    runs, _ = train(specs, tmp_path)
    few, many = (run.chunks[0] for run in runs)
    assert 0 < few.seconds < many.seconds
    assert few.seconds + many.seconds <= max(few.ended, many.ended) - min(few.started, many.started)


def test_a_gang_that_is_left_in_the_middle_goes_on_as_it_would_have(
    tiny_model: Path, tiny_data: Path, tmp_path: Path, passes: list[tuple[int, ...]]
) -> None:
    """Ctrl-C: every member leaves behind its step; another process goes on with the bits of each alone."""
    specs = [
        run_spec(
            tiny_model,
            tiny_data,
            chunks=2,
            evaluate=False,
            args={"max_steps": 12, "learning_rate": 1e-3 * (number + 1)},
            peft={"r": 4 * (number + 1)},
        )
        for number in range(2)
    ]
    interrupt = {"_target_": "tests.worker.gangs.test_in_an_experiment.InterruptAt", "step": 8}
    first = replace(specs[0], trainer=replace(specs[0].trainer, callbacks=(interrupt,)))
    engine = make_engine(tmp_path / "experiment")
    for number, spec in enumerate([first, specs[1]]):
        engine.add(spec, number)
    with pytest.raises(Interrupted):
        engine.run()
    engine.close()
    before = len(passes)
    assert 6 < before < 12
    engine = make_engine(tmp_path / "experiment")
    saved = read(ExperimentPaths(tmp_path / "experiment").state)
    assert saved is not None
    engine.go_on(saved)
    with outcomes() as together:
        for number, spec in enumerate([first, specs[1]]):
            record = saved.run(number)
            assert record is not None
            engine.restore(engine.add(spec, number), record)
        engine.run()
    engine.close()
    assert len(passes) > before
    for number, one in enumerate(specs):
        assert not together[str(number)].differences(train_alone(one, tmp_path / "alone" / str(number)))


class InterruptAt(TrainerCallback):
    """Sends what Ctrl-C sends, in the middle of a step."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args: object, state: object, control: object, **_: object) -> None:
        if state.global_step == self.step:  # type: ignore[attr-defined]
            os.kill(os.getpid(), signal.SIGINT)
