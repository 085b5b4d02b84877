"""A trainer that is suspended at its boundaries is the trainer that it is alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

from rfflow.errors import ConfigError
from rfflow.runs.chunks import chunk_ends
from rfflow.runs.events import Boundary, Finished, Pause, Progress, Ready
from rfflow.runs.run import RunState
from rfflow.worker.training.context import RunContext
from rfflow.worker.training.coroutine import TrainerCoroutine


class Line(torch.nn.Module):
    """The smallest model a trainer takes."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = torch.nn.Parameter(torch.tensor([5.0]))

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": ((x * self.slope - labels) ** 2).mean()}


def rows(count: int) -> list[dict[str, torch.Tensor]]:
    """Return points of a line of slope 2."""
    return [{"x": torch.tensor([n / count]), "labels": torch.tensor([2 * n / count])} for n in range(1, count + 1)]


Make = Callable[..., Trainer]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Make trainers inside a context of their own: 24 steps an epoch unless told otherwise."""

    def make(
        count: int = 48,
        callbacks: Any = (),
        kind: type[Trainer] = Trainer,
        data: Any = None,
        evaluation: Any = None,
        folder: str = "trainer",
        **args: Any,
    ) -> Trainer:
        given = {"num_train_epochs": 1, "per_device_train_batch_size": 2, "logging_steps": 1, "save_strategy": "no"}
        given |= {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "learning_rate": 0.05, **args}
        return kind(
            model=Line(),
            args=TrainingArguments(output_dir=str(tmp_path / folder), **given),
            train_dataset=data if data is not None else rows(count),
            eval_dataset=evaluation,
            callbacks=list(callbacks),
        )

    with RunContext(torch.device("cpu"), tmp_path / "run.log").active():
        yield make


def pauses(coroutine: TrainerCoroutine) -> list[Pause]:
    """Resume to the end."""
    seen = [coroutine.resume()]
    while not coroutine.is_finished:
        seen.append(coroutine.resume())
    return seen


def boundaries(coroutine: TrainerCoroutine) -> list[int]:
    """Resume to the end; return the step of each boundary."""
    return [pause.step for pause in pauses(coroutine) if isinstance(pause, Boundary)]


# --- where it pauses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "chunks", "args", "per_epoch", "total"),
    [
        (48, 4, {}, 24, 24),
        (48, 1, {}, 24, 24),
        (48, 24, {}, 24, 24),
        (50, 7, {"num_train_epochs": 3}, 25, 75),
        (49, 4, {"gradient_accumulation_steps": 3}, 9, 9),
        (48, 4, {"max_steps": 30}, 24, 30),
        (48, 4, {"max_steps": 2}, 24, 2),
        (48, 4, {"num_train_epochs": 1.5}, 24, 36),
        (49, 4, {"dataloader_drop_last": True}, 24, 24),
    ],
)
def test_it_pauses_where_the_chunks_end(
    make: Make, count: int, chunks: int, args: dict[str, Any], per_epoch: int, total: int
) -> None:
    seen = pauses(TrainerCoroutine(make(count, **args), chunks, progress_every=1e9))
    ends = chunk_ends(per_epoch, chunks, total)
    assert isinstance(seen[0], Ready) and seen[0].plan.ends == ends and seen[0].plan.per_epoch == chunks
    assert [pause.step for pause in seen[1:]] == list(ends)
    assert [type(pause) for pause in seen[1:]] == [Boundary] * (len(ends) - 1) + [Finished]


def test_a_stream_of_rows_is_cut_by_its_steps(make: Make) -> None:
    """It has no epochs that could be counted, so the whole run is one."""

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
            while True:
                yield from rows(10)

    assert boundaries(TrainerCoroutine(make(data=Stream(), max_steps=12), 3)) == [4, 8, 12]


def test_more_chunks_than_steps_are_refused(make: Make) -> None:
    with pytest.raises(ConfigError, match=r"chunks is 25, but an epoch has only 24 optimizer steps.*1 to 24"):
        TrainerCoroutine(make(), 25).resume()


def test_a_run_without_steps_is_refused(make: Make) -> None:
    with pytest.raises(ConfigError, match="no optimizer step"):
        TrainerCoroutine(make(num_train_epochs=0), 1).resume()


def test_everything_logged_is_told_once(make: Make) -> None:
    """In whatever pieces: what is told is the trainer's own log history, less the times that count suspension."""
    for every in (0.0, 1e9):
        trainer = make(num_train_epochs=2, eval_strategy="steps", eval_steps=5, evaluation=rows(3))
        seen = pauses(TrainerCoroutine(trainer, 4, progress_every=every))
        assert any(isinstance(pause, Progress) for pause in seen) == (every == 0)
        told = [(step, logs) for pause in seen if not isinstance(pause, Ready) for step, logs in pause.logs]
        ours = [logs for _, logs in told if list(logs) and not any(key.endswith("runtime") for key in logs)]
        assert [step for step, logs in told if "loss" in logs] == list(range(1, 49))
        assert [logs["loss"] for logs in ours if "loss" in logs] == [
            entry["loss"] for entry in trainer.state.log_history if "loss" in entry
        ]
        own = [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry]
        assert own == [5, 10, 15, 20, 25, 30, 35, 40, 45, 48]
        evaluated = [step for step, logs in told if "eval_loss" in logs]
        assert evaluated == sorted({*own, 6, 12, 18, 24, 30, 36, 42, 48}), "the user's and ours, none twice"


# --- what users do ----------------------------------------------------------------------------------------------------


class StopAt(TrainerCallback):
    """Ends the training behind a step."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


@pytest.mark.parametrize(("step", "seen"), [(3, [3]), (6, [6]), (7, [6, 7]), (23, [6, 12, 18, 23])])
def test_a_user_may_end_it_early(make: Make, step: int, seen: list[int]) -> None:
    """In the middle of a chunk or at its end: the last boundary is where it ended."""
    coroutine = TrainerCoroutine(make(callbacks=[StopAt(step)]), 4)
    assert boundaries(coroutine) == seen and coroutine.is_finished


def test_early_stopping_counts_the_users_evaluations_alone(make: Make) -> None:
    """Ours, at every boundary, would end it sooner and change what is best."""

    class Worsening(Trainer):
        def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
            metrics = {"eval_loss": float(self.state.global_step)}
            self.log(metrics)
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
            return metrics

    def run(folder: str, alone: bool) -> tuple[int, Any, list[Any]]:
        trainer = make(
            kind=Worsening,
            folder=folder,
            evaluation=rows(2),
            callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
            eval_strategy="steps",
            eval_steps=5,
            save_strategy="steps",
            save_steps=5,
            load_best_model_at_end=True,
            metric_for_best_model="eval_loss",
        )
        trainer.train() if alone else pauses(TrainerCoroutine(trainer, 12))
        history = [
            {k: v for k, v in e.items() if not k.endswith(("time", "second"))} for e in trainer.state.log_history
        ]
        return trainer.state.global_step, trainer.state.best_metric, history

    alone, together = run("alone", True), run("together", False)
    assert together == alone and alone[:2] == (15, 5.0)


def test_the_best_model_is_loaded_at_the_end(make: Make, tmp_path: Path) -> None:
    """The user's checkpoints are there as alone, and what is finished with is the best of them."""
    finished = []
    trainer = make(
        evaluation=rows(2),
        learning_rate=3.0,  # jumps over the valley and back
        eval_strategy="steps",
        eval_steps=4,
        save_strategy="steps",
        save_steps=4,
        load_best_model_at_end=True,
    )
    coroutine = TrainerCoroutine(trainer, 3, finish=lambda trainer: finished.append(trainer.model.slope.item()))
    pauses(coroutine)
    saved = sorted(int(path.name.removeprefix("checkpoint-")) for path in (tmp_path / "trainer").glob("checkpoint-*"))
    assert saved == [4, 8, 12, 16, 20, 24]
    losses = {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}
    best = min(losses, key=lambda step: losses[step])
    assert trainer.state.best_model_checkpoint == str(tmp_path / "trainer" / f"checkpoint-{best}")
    from safetensors.torch import load_file

    assert finished == [load_file(tmp_path / "trainer" / f"checkpoint-{best}" / "model.safetensors")["slope"].item()]


def test_what_the_user_saves_at_a_boundary_is_there_when_it_pauses(make: Make, tmp_path: Path) -> None:
    coroutine = TrainerCoroutine(make(save_strategy="steps", save_steps=6), 4)
    assert isinstance(coroutine.resume(), Ready)
    coroutine.resume()
    assert (tmp_path / "trainer" / "checkpoint-6").is_dir()
    coroutine.close()


def test_an_evaluation_at_the_start_is_told(make: Make) -> None:
    seen = pauses(TrainerCoroutine(make(evaluation=rows(2), eval_strategy="epoch", eval_on_start=True), 2))
    assert isinstance(seen[0], Ready)
    told = [step for pause in seen[1:] for step, logs in pause.logs if "eval_loss" in logs]  # type: ignore[union-attr]
    assert told == [0, 12, 24]


def test_several_evaluation_sets_are_all_told(make: Make) -> None:
    last = pauses(TrainerCoroutine(make(evaluation={"near": rows(2), "far": rows(5)}), 2))[-1]
    assert isinstance(last, Finished) and {"eval_near_loss", "eval_far_loss", "loss"} <= set(last.metrics)


# --- when it goes wrong -----------------------------------------------------------------------------------------------

HOOKS = (
    "on_train_begin",
    "on_epoch_begin",
    "on_step_begin",
    "on_pre_optimizer_step",
    "on_optimizer_step",
    "on_step_end",
    "on_log",
    "on_evaluate",
    "on_save",
    "on_epoch_end",
    "on_train_end",
)


def raiser(hook: str, error: BaseException) -> TrainerCallback:
    """Return a user's callback that raises at a hook."""

    def fail(self: object, *args: Any, **kwargs: Any) -> None:
        raise error

    return type("Raiser", (TrainerCallback,), {hook: fail})()


@pytest.mark.parametrize("hook", HOOKS)
def test_what_a_trainer_raises_comes_out_and_it_is_over(make: Make, hook: str) -> None:
    """Wherever a user's callback raises: the error itself, once, and nothing is left to resume."""
    error = ValueError(hook)
    args = {"eval_strategy": "steps", "eval_steps": 6, "save_strategy": "steps", "save_steps": 6}
    coroutine = TrainerCoroutine(make(evaluation=rows(2), callbacks=[raiser(hook, error)], **args), 4)
    with pytest.raises(ValueError) as raised:
        pauses(coroutine)
    assert raised.value is error and coroutine.is_finished
    coroutine.close()


def test_an_evaluation_of_ours_that_raises_is_the_runs_failure(make: Make) -> None:
    class Broken(Trainer):
        def evaluate(self, *args: Any, **kwargs: Any) -> Any:
            raise ZeroDivisionError

    coroutine = TrainerCoroutine(make(kind=Broken, evaluation=rows(2)), 4)
    with pytest.raises(ZeroDivisionError):
        pauses(coroutine)
    assert coroutine.is_finished and len(coroutine.trainer.callback_handler.callbacks) > 1


@pytest.mark.parametrize("raises", [False, True], ids=["", "and they raise"])
def test_giving_it_up_runs_its_finally_clauses(
    make: Make, raises: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What they raise is logged and goes no further: a run that is deleted must not end the experiment."""
    ran, logged = [], []
    monkeypatch.setattr("rfflow.worker.training.coroutine.log.exception", logged.append)

    class Careful(Trainer):
        def train(self, *args: Any, **kwargs: Any) -> Any:
            try:
                return super().train(*args, **kwargs)
            finally:
                ran.append(self.state.global_step)
                if raises:
                    raise OSError("cannot close the connection")

    coroutine = TrainerCoroutine(make(kind=Careful), 4)
    coroutine.resume()
    coroutine.resume()
    coroutine.close()
    coroutine.close()
    assert ran == [6] and coroutine.is_finished and len(logged) == raises


def test_one_that_was_never_started_can_be_given_up(make: Make) -> None:
    TrainerCoroutine(make(), 4).close()


def test_an_interruption_comes_out_at_once(make: Make) -> None:
    """Ctrl-C while a run trains is nobody's failure: it reaches whoever resumed, and everything can be closed."""
    coroutine = TrainerCoroutine(make(callbacks=[raiser("on_step_end", KeyboardInterrupt())]), 4)
    coroutine.resume()
    with pytest.raises(KeyboardInterrupt):
        coroutine.resume()
    assert coroutine.is_finished
    coroutine.close()


def test_an_interruption_leaves_the_engine_able_to_close(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Callbacks hear of it, the other runs are given up in order, and the control directory is free."""
    from rfflow.runs.experiment import Callback
    from tests.support.toy import ToyTrainee, toy_engine, toy_spec

    heard = []

    class Hear(Callback):
        def on_exception(self, experiment: Any, error: BaseException) -> None:
            heard.append(type(error))

    original, closed = ToyTrainee.advance, []

    def advance(self: ToyTrainee) -> Pause:
        if self.run.number == 1 and self._step:
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(ToyTrainee, "advance", advance)
    monkeypatch.setattr(ToyTrainee, "close", lambda self: closed.append(self.run.number))
    engine = toy_engine(tmp_path, [toy_spec()] * 3, [Hear()])
    with pytest.raises(KeyboardInterrupt):
        engine.run()
    engine.close()
    assert heard == [KeyboardInterrupt] and sorted(closed) == [0, 1, 2]
    assert not (tmp_path / "control" / ".lock").exists()
    assert all(run.state is RunState.RUNNING and run.error is None for run in engine.experiment.runs)


# --- what a boundary knows --------------------------------------------------------------------------------------------


def test_the_loss_of_a_run_that_ends_early_is_of_its_own_last_steps(make: Make) -> None:
    """Not of the chunk before: that is older than the run's end."""
    trainer = make(callbacks=[StopAt(8)])
    last = pauses(TrainerCoroutine(trainer, 4))[-1]
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert isinstance(last, Finished) and last.step == 8
    assert last.metrics["loss"] == pytest.approx(sum(losses[6:8]) / 2, rel=1e-3)


def test_a_boundary_tells_what_is_counted_and_not_yet_logged(make: Make) -> None:
    """So that runs can be ranked by TRL's metrics at every chunk's end, however seldom they are logged."""

    class Counts(Trainer):
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            self._metrics["train"].setdefault("reward", []).append(float(self.state.global_step))
            return super().training_step(*args, **kwargs)

        def log(self, logs: Any, *args: Any, **kwargs: Any) -> None:
            self._metrics["train"].clear()
            super().log(logs, *args, **kwargs)

    trainer = make(kind=Counts, logging_steps=10)
    trainer._metrics = {"train": {}, "eval": {}}
    seen = [pause.running for pause in pauses(TrainerCoroutine(trainer, 4)) if isinstance(pause, Boundary)]
    assert seen == [{"reward": 2.5}, {"reward": 10.5}, {"reward": 13.5}, {}]
