"""A clone that starts warm has its parent's weights, or a refusal that says what differs; and its own order of rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainingArguments

from rfflow.errors import OpError
from rfflow.runs.chunks import chunk_ends
from rfflow.worker.training.context import RunContext
from rfflow.worker.training.warm_start import Rotated, all_finite, load_weights, start_at_chunk, trained_weights


def network(width: int = 3, *, frozen: bool = False, extra: bool = False) -> torch.nn.Module:
    """Return a layer named `a`, and perhaps another."""
    model = torch.nn.Module()
    model.a = torch.nn.Linear(2, width)
    model.b = torch.nn.Linear(width, 1)
    if frozen:
        model.b.requires_grad_(False)
    if extra:
        model.c = torch.nn.Linear(1, 1)
    return model


def saved(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return what is saved of a parent."""
    return {name: tensor.detach().clone() for name, tensor in trained_weights(model).items()}


def test_the_weights_that_are_trained_are_copied_bit_for_bit() -> None:
    """Into the clone's own parameters, which its optimizer may hold already; what is frozen is left alone."""
    parent, clone = network(frozen=True), network(frozen=True)
    frozen, parameters = clone.b.weight.clone(), list(clone.parameters())
    load_weights(clone, saved(parent), 0)
    assert torch.equal(clone.a.weight, parent.a.weight) and torch.equal(clone.a.bias, parent.a.bias)
    assert torch.equal(clone.b.weight, frozen)
    assert all(now is before for now, before in zip(clone.parameters(), parameters, strict=True))
    assert clone.a.weight.requires_grad


@pytest.mark.parametrize("worst", [float("nan"), float("inf"), -float("inf")])
def test_one_weight_that_is_no_number_is_found_among_many(worst: float) -> None:
    model = network()
    assert all_finite(trained_weights(model))
    with torch.no_grad():
        model.b.weight[0, 1] = worst
    assert not all_finite(trained_weights(model))


def test_large_weights_are_numbers_though_their_sum_is_none() -> None:
    large = torch.full((10,), torch.finfo(torch.float32).max)
    assert all_finite({"a": large, "b": torch.full((4,), torch.finfo(torch.float16).max, dtype=torch.float16)})


@pytest.mark.parametrize(
    ("clone", "said"),
    [
        (network(4), "a.weight is 3x2 in run 7 and 4x2 in the clone"),
        (network(extra=True), "c.weight 1x1 is trained by the clone and not by run 7"),
        (network(frozen=True), "b.weight 1x3 is trained by run 7 and not by the clone"),
    ],
)
def test_another_architecture_is_refused_and_nothing_is_copied(clone: torch.nn.Module, said: str) -> None:
    before = saved(clone)
    with pytest.raises(OpError) as refused:
        load_weights(clone, saved(network()), 7)
    assert said in str(refused.value) and "without warm_start" in str(refused.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in saved(clone).items())


def test_adapters_of_different_targets_are_refused_by_name(tiny_model: Path) -> None:
    """As PEFT names them: the module that one has and the other has not."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    def adapted(targets: list[str]) -> torch.nn.Module:
        model = AutoModelForCausalLM.from_pretrained(tiny_model)
        return get_peft_model(model, LoraConfig(r=2, target_modules=targets))

    with pytest.raises(OpError, match=r"layers\.0\.self_attn\.k_proj\.lora_A\.default\.weight 2x64 is trained by the"):
        load_weights(adapted(["q_proj", "k_proj"]), saved(adapted(["q_proj"])), 0)


# --- the order of rows ------------------------------------------------------------------------------------------------


class Constant(torch.nn.Module):
    """A model that does not care what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": self.weight.sum()}


def batches(tmp_path: Path, rows: int, first_chunk: int, chunks: int, **args: Any) -> list[list[int]]:
    """Return the rows of each batch that a trainer trains on, in order."""
    seen: list[list[int]] = []

    class Noting(Trainer):
        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            seen.append([int(row) for row in inputs["x"]])
            return super().training_step(model, inputs, *args, **kwargs)

    with RunContext(torch.device("cpu"), tmp_path / "run.log").active():
        data = [{"x": torch.tensor(float(row)), "labels": torch.tensor(0.0)} for row in range(rows)]
        given = {"per_device_train_batch_size": 2, "num_train_epochs": 1, "data_seed": 3, "use_cpu": True, **args}
        given |= {"report_to": "none", "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}
        trainer = Noting(Constant(), TrainingArguments(str(tmp_path / "trainer"), **given), train_dataset=data)
        start_at_chunk(trainer, first_chunk, chunks)
        trainer.train()
    return seen


@pytest.mark.parametrize(
    ("rows", "accumulation", "first_chunk"), [(32, 1, 1), (48, 3, 0), (48, 3, 2), (36, 2, 1), (36, 2, 3)]
)
def test_it_begins_with_the_chunk_asked_for_and_wraps_round(
    tmp_path: Path, first_chunk: int, rows: int, accumulation: int
) -> None:
    """The very batches of the epoch, each once, from the chunk's first on."""
    straight = batches(tmp_path, rows, 0, 4, gradient_accumulation_steps=accumulation)
    rotated = batches(tmp_path, rows, first_chunk, 4, gradient_accumulation_steps=accumulation)
    steps = rows // 2 // accumulation
    ends = (0, *chunk_ends(steps, 4, steps))
    start = ends[first_chunk] * accumulation
    assert rotated == straight[start:] + straight[:start]


def test_each_epoch_begins_there_in_an_order_of_its_own(tmp_path: Path) -> None:
    straight = batches(tmp_path, 16, 0, 4, num_train_epochs=2)
    rotated = batches(tmp_path, 16, 1, 4, num_train_epochs=2)
    assert rotated == straight[2:8] + straight[:2] + straight[10:] + straight[8:10]
    assert straight[:8] != straight[8:]


def test_rows_that_fill_no_whole_batch_are_all_seen_once(tmp_path: Path) -> None:
    """The short batch need not be last any more, but no row is lost or seen twice."""
    seen = batches(tmp_path, 33, 2, 4)
    assert sorted(row for batch in seen for row in batch) == list(range(33))
    assert [len(batch) for batch in seen] == [2] * 16 + [1]


def test_a_sampler_that_knows_its_epoch_is_told() -> None:
    class Sampler:
        epoch = 0

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

        def __iter__(self) -> Any:
            return iter([self.epoch, 1, 2])

        def __len__(self) -> int:
            return 3

    sampler: Any = Sampler()
    rotated = Rotated(sampler, 2)
    rotated.set_epoch(9)
    assert list(rotated) == [2, 9, 1] and len(rotated) == 3


class Endless(IterableDataset[Any]):
    """Rows without an end, and a length that says nothing."""

    def __iter__(self) -> Iterator[Any]:
        return iter(lambda: {"x": 1}, None)

    def __len__(self) -> int:
        return 8


@pytest.mark.parametrize("kind", ["torch", "datasets"])
def test_a_stream_has_no_middle_to_begin_in(tmp_path: Path, kind: str) -> None:
    """It is said before anything is changed; from its beginning a stream can be read."""
    rows = Endless() if kind == "torch" else datasets.Dataset.from_dict({"x": [1, 2]}).to_iterable_dataset()
    trainer = Trainer(network(), TrainingArguments(tmp_path, max_steps=4, report_to=[]), train_dataset=rows)
    make = trainer.get_train_dataloader
    start_at_chunk(trainer, 0, 4)
    with pytest.raises(OpError, match=r"chunk 2 of 4.*as a stream \(\w+\).*Clone it without warm_start"):
        start_at_chunk(trainer, 1, 4)
    assert trainer.get_train_dataloader == make
