"""An evaluation of ours, or a generation, moves nothing of the run: all is as the script alone would leave it."""

from __future__ import annotations

import random
from collections import defaultdict, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from rfflow.runs.events import Boundary
from rfflow.worker.training.context import RunContext
from rfflow.worker.training.coroutine import TrainerCoroutine
from rfflow.worker.training.unnoticed import unnoticed
from tests.support.tiny import make_tokenizer
from tests.worker.training.test_coroutine import HOOKS, Line, pauses, rows

TIMES = ("runtime", "per_second")


@pytest.fixture(autouse=True)
def context(tmp_path: Path) -> Iterator[None]:
    with RunContext(torch.device("cpu"), tmp_path / "run.log").active():
        yield


class Everything(TrainerCallback):
    """Writes down every call, and how the trainer stood."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []


def _note(hook: str) -> Any:
    def note(self: Everything, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        flags = tuple(value for value in vars(control).values())
        self.calls.append((hook, state.global_step, len(state.log_history), flags, kwargs["model"].training))

    return note


for _hook in (*HOOKS, "on_prediction_step", "on_substep_end", "on_predict"):
    setattr(Everything, _hook, _note(_hook))


class Moves(torch.optim.SGD):
    """Trains some weights and evaluates others, as schedule-free optimizers do, and writes down every call."""

    def __init__(self, params: Any, lr: float):
        super().__init__(params, lr)
        self.calls: list[str] = []
        self.param_groups[0]["mode"] = "train"

    def train(self) -> None:
        self.calls.append("train")
        self.switch("train", -0.1)

    def eval(self) -> None:
        self.calls.append("eval")
        self.switch("eval", 0.1)

    def switch(self, mode: str, by: float) -> None:
        group = self.param_groups[0]
        if group["mode"] != mode:
            group["mode"] = mode
            for weight in group["params"]:
                weight.data.add_(by)  # there and back is not exact

    def step(self, closure: Any = None) -> Any:
        assert self.param_groups[0]["mode"] == "train"
        self.calls.append("step")
        for weight in self.param_groups[0]["params"]:
            self.state[weight].setdefault("average", torch.zeros_like(weight))
        return super().step(closure)


class Swaps(Moves):
    """Keeps the weights that it evaluates in its state, and changes the two over."""

    def switch(self, mode: str, by: float) -> None:
        group = self.param_groups[0]
        if group["mode"] != mode:
            group["mode"] = mode
            for weight in group["params"]:
                if (average := self.state[weight].get("average")) is not None:
                    kept = weight.data.clone()
                    weight.data.copy_(average)
                    average.copy_(kept)


class Remembers(Trainer):
    """A trainer that is changed by each of its evaluations wherever it can be."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.seen, self._metrics = 0, {"train": defaultdict(list), "eval": defaultdict(list)}
        self._logs = {"prompt": deque(maxlen=2), "extra": defaultdict(deque)}

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        self.seen += 1
        self.late = self.seen
        self._metrics["train"]["reward"].append(1.0)
        self._logs["prompt"].append("evaluated")
        self._logs["extra"]["column"].append("evaluated")
        self.state.best_metric = self.state.num_input_tokens_seen = 7
        self.state.stateful_callbacks["Own"] = {}
        self.args.label_smoothing_factor = 0.5
        self.model.cache = torch.ones(1)
        self.model.register_buffer("grown", torch.ones(1), persistent=False)
        self.model.frozen.training = True
        return super().prediction_step(*args, **kwargs)


class Collator:
    """Masks at random, by generators of its own, one of which it makes when it is first asked."""

    def __init__(self) -> None:
        self.late: torch.Generator | None = None
        self.seeded = torch.Generator().manual_seed(1)
        self.others = [random.Random(1), numpy.random.default_rng(1), numpy.random.RandomState(1)]

    def __call__(self, batch: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        self.late = self.late or torch.Generator().manual_seed(2)
        noise = torch.rand(1, generator=self.seeded) + torch.rand(1, generator=self.late)
        noise += self.others[0].random() + self.others[1].random() + self.others[2].random()
        return {key: torch.stack([row[key] for row in batch]) + noise * (key == "labels") for key in batch[0]}


class Counts:
    """Metrics that remember how often they were asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, prediction: Any) -> dict[str, float]:
        self.asked.append(1)
        return {"asked": float(len(self.asked))}


def make(folder: Path, optimizer: type[Moves], kind: type[Trainer] = Remembers, **args: Any) -> Trainer:
    """Return a trainer with all of that."""
    torch.manual_seed(3)
    model = Line()
    model.frozen = torch.nn.Dropout(0.5).eval()
    given = {"num_train_epochs": 2, "per_device_train_batch_size": 2, "logging_steps": 5, "save_strategy": "no"}
    given |= {"use_cpu": True, "report_to": "none", "disable_tqdm": True, **args}
    return kind(
        model=model,
        args=TrainingArguments(output_dir=str(folder), **given),
        train_dataset=rows(24),
        eval_dataset=rows(5),
        callbacks=[Everything()],
        compute_metrics=Counts(),
        data_collator=Collator(),
        optimizers=(optimizer(model.parameters(), 0.05), None),
    )


def standing(trainer: Trainer) -> dict[str, Any]:
    """Return how a trainer stands, as far as it can be compared."""
    optimizer = trainer.optimizer.optimizer
    everything = next(c for c in trainer.callback_handler.callbacks if isinstance(c, Everything))
    history = [{k: v for k, v in e.items() if not k.endswith(TIMES)} for e in trainer.state.log_history]
    return {
        "weights": trainer.model.slope.item(),
        "optimizer": optimizer.calls,
        "mode": optimizer.param_groups[0]["mode"],
        "average": [state["average"].item() for state in optimizer.state.values()],
        "callbacks": everything.calls,
        "control": vars(trainer.control),
        "state": {k: v for k, v in vars(trainer.state).items() if k != "log_history"},
        "history": history,
        "metrics": {mode: dict(values) for mode, values in trainer._metrics.items()},
        "logs": {name: list(values) for name, values in trainer._logs.items()},
        "own": (trainer.seen, getattr(trainer, "late", None), trainer.compute_metrics.asked),
        "attributes": sorted(vars(trainer)),
        "smoothing": trainer.args.label_smoothing_factor,
        "model": (trainer.model.training, trainer.model.frozen.training, dict(trainer.model.named_buffers())),
        "cache": getattr(trainer.model, "cache", None),
        "loaders": len(trainer.accelerator._dataloaders),
        "handler": type(trainer.callback_handler.eval_dataloader),
        "collator": trainer.data_collator.late and trainer.data_collator.late.get_state().tolist(),
        "in train": (trainer.is_in_train, trainer._memory_tracker.skip_memory_metrics),
        "random": (torch.rand(1).item(), numpy.random.rand(), random.random()),
    }


@pytest.mark.parametrize("optimizer", [Moves, Swaps])
@pytest.mark.parametrize("args", [{}, {"eval_strategy": "steps", "eval_steps": 7}], ids=["", "with the user's own"])
def test_after_our_evaluations_everything_is_as_in_the_script_alone(
    tmp_path: Path, optimizer: type[Moves], args: dict[str, Any]
) -> None:
    """An optimizer with two modes and callbacks that write down every call, and whatever else remembers."""
    alone = make(tmp_path / "alone", optimizer, **args)
    alone.train()
    expected = standing(alone)
    trainer = make(tmp_path / "ours", optimizer, **args)
    coroutine = TrainerCoroutine(trainer, 4)
    asked = []
    coroutine.generate = lambda trainer: (asked.append(trainer.optimizer.optimizer.calls[-1]) or {"eval_x": 1.0}, ())
    seen = pauses(coroutine)
    found = standing(trainer)
    # Our own callback is one more; it is there to be called.
    assert {key: found[key] for key in expected if found[key] != expected[key]} == {}
    assert asked == ["eval"] * 8, "answers are generated with the weights that are evaluated"
    assert all("eval_loss" in pause.metrics for pause in seen if isinstance(pause, Boundary))


@pytest.mark.parametrize("optimizer", [Moves, Swaps])
def test_what_is_saved_at_a_boundary_is_what_the_script_alone_saves(tmp_path: Path, optimizer: type[Moves]) -> None:
    """Weights and the optimizer's mode, in the checkpoint and at the end."""
    alone = make(tmp_path / "alone", optimizer, save_strategy="steps", save_steps=6)
    alone.train()
    trainer = make(tmp_path / "ours", optimizer)
    coroutine = TrainerCoroutine(trainer, 2)
    for step in (0, 6, 12):
        pause = coroutine.resume()
        if step:
            assert pause.step == step  # type: ignore[union-attr]
            (folder := tmp_path / f"step-{step}").mkdir()
            coroutine.snapshot(folder)()
            theirs = torch.load(tmp_path / "alone" / f"checkpoint-{step}" / "optimizer.pt", weights_only=True)
            ours = torch.load(folder / "optimizer.pt", weights_only=True)
            assert ours == theirs
            name = "model.safetensors"
            assert (folder / name).read_bytes() == (tmp_path / "alone" / f"checkpoint-{step}" / name).read_bytes()
    coroutine.close()


@pytest.mark.parametrize("option", ["bf16_full_eval", "fp16_full_eval"])
def test_the_last_evaluation_does_not_cast_the_model_for_good(tmp_path: Path, option: str) -> None:
    """Trainers cast it where they evaluate behind their training, which is where our last one is."""
    trainer = make(tmp_path / "ours", Moves, **{option: True})
    pauses(TrainerCoroutine(trainer, 2))
    assert trainer.model.slope.dtype == torch.float32
    alone = make(tmp_path / "alone", Moves, **{option: True})
    alone.train()
    assert torch.equal(trainer.model.slope, alone.model.slope)


def test_an_evaluation_that_raises_leaves_no_trace_either(tmp_path: Path) -> None:
    class Broken(Remembers):
        def evaluate(self, *args: Any, **kwargs: Any) -> Any:
            super().evaluate(*args, **kwargs)
            raise ZeroDivisionError

    trainer = make(tmp_path, Moves, Broken)
    coroutine = TrainerCoroutine(trainer, 4)
    with pytest.raises(ZeroDivisionError):
        pauses(coroutine)
    assert trainer.seen == 0 and "eval" not in trainer.optimizer.optimizer.calls
    assert len(trainer.callback_handler.callbacks) > 1 and trainer.is_in_train is not None


def test_a_rotary_embedding_that_grew_by_a_long_row_shrinks_again(tmp_path: Path) -> None:
    """Its frequencies would else be other ones for the rows that are trained next."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=16,
        max_position_embeddings=8,
        rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
    )
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    trainer = Trainer(model=LlamaForCausalLM(config), args=args)
    short, long = torch.arange(12)[None], torch.zeros(1, 64, dtype=torch.long)
    with torch.no_grad():
        before = trainer.model(short).logits
        with unnoticed(trainer, TrainerCallback()):
            trainer.model(long)
            assert not torch.equal(trainer.model(short).logits, before), "the case is one"
        assert torch.equal(trainer.model(short).logits, before)


def test_how_a_tokenizer_pads_and_cuts_is_as_before(tmp_path: Path) -> None:
    """It is written into the folder of the final adapter."""
    tokenizer = make_tokenizer()
    tokenizer(["a", "bcd"], padding=True, truncation=True, max_length=2)
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    trainer = Trainer(model=Line(), args=args, processing_class=tokenizer)
    before = tokenizer._tokenizer.to_str()
    with unnoticed(trainer, TrainerCallback()):
        tokenizer("abc")
        assert tokenizer._tokenizer.to_str() != before
    assert tokenizer._tokenizer.to_str() == before


def test_what_the_trainer_measures_of_memory_is_of_its_own_doing(tmp_path: Path) -> None:
    trainer = make(tmp_path, Moves, num_train_epochs=1, skip_memory_metrics=False)
    last = pauses(TrainerCoroutine(trainer, 1))[-1]
    assert isinstance(last, Boundary) and "eval_loss" in last.metrics and "eval_mem_cpu_alloc_delta" not in last.metrics
