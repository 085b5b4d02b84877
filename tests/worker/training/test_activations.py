"""Activations are recomputed where they would not fit, and only there; no bit depends on it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset, load_dataset

from rfflow.checkpointing import experiment_file
from rfflow.config.spec import ExperimentSpec, MemorySpec, RunSpec
from rfflow.control.status import read_status
from rfflow.engine.engine import Engine
from rfflow.runs.activations import Activations
from rfflow.runs.paths import ExperimentPaths
from rfflow.runs.run import Run, RunState
from rfflow.worker.training import activations
from rfflow.worker.training.activations import Kept, choose
from rfflow.worker.training.longest import Batch, longest_batch
from tests.stories.test_faults import OutOfMemory, with_callback
from tests.support.plain import Outcome, train_alone
from tests.support.tiny import make_model, run_spec
from tests.worker.training.test_exactness import outcomes
from tests.worker.training.test_snapshot_alignment import (
    dpo_spec,
    evaluation_pairs,
    evaluation_prompts,
    grpo_spec,
    pairs,
    prompts,
)

__all__ = ["dpo_spec", "evaluation_pairs", "evaluation_prompts", "grpo_spec", "pairs", "prompts"]

KEPT = Kept(once=1000, token=100, pair=1, layer=1, layers=10)
BATCH = Batch(2, 50)  # 1000 + 2 * (5000 + 2500) = 16000


@pytest.fixture(scope="module")
def deep_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five layers, so that every second one is not every one."""
    return make_model(tmp_path_factory.mktemp("deep") / "model", layers=5)


def auto(spec: RunSpec, **args: Any) -> RunSpec:
    return replace(
        spec, trainer=replace(spec.trainer, args={**spec.trainer.args, "activation_checkpointing": "auto", **args})
    )


def fixed(spec: RunSpec, value: bool, **args: Any) -> RunSpec:
    return auto(spec, activation_checkpointing=value, **args)


def train(root: Path, specs: list[RunSpec], **memory: Any) -> tuple[list[Run], dict[str, Outcome]]:
    spec = ExperimentSpec(name="test", accelerator="cpu", memory=MemorySpec(**memory))
    engine = Engine(spec, ExperimentPaths(root))
    with outcomes() as ended:
        runs = [engine.add(each, number) for number, each in enumerate(specs)]
        engine.run()
    engine.close()
    assert [run.state for run in runs] == [RunState.COMPLETED] * len(runs), [run.error for run in runs]
    return runs, ended


@pytest.mark.parametrize(
    ("free", "asked", "expected"),
    [
        (21_400, {}, 0),
        (21_300, {}, 4),  # every fourth, 3 of 10: 0.7 * 16000 + 1600 + 5 * 100
        (10_000, {}, 1),
        (0, {}, 1),
        (10_000, {"every_n_layers": 3}, 3),
        (21_400, {"every_n_layers": 3}, 0),
    ],
)
def test_less_is_recomputed_where_more_is_free(free: float, asked: dict[str, Any], expected: int) -> None:
    assert choose(KEPT, BATCH, 0, free, asked) == expected
    assert choose(KEPT, BATCH, 9_000, free + 12_000, asked) == expected
    recomputed = [KEPT.with_every(n, BATCH) for n in (4, 3, 2, 1)]
    assert recomputed == sorted(recomputed, reverse=True) and recomputed[0] < KEPT.all(BATCH)


def test_a_heap_loses_some_of_what_is_free() -> None:
    """So that blocks are mapped one by one long before what is kept takes all of it."""
    assert activations.is_tight(KEPT, BATCH, 0, 31_900) and not activations.is_tight(KEPT, BATCH, 0, 32_100)
    assert activations.is_tight(KEPT, BATCH, 1_000, 32_100)
    assert activations.is_tight(KEPT, None, 0, 1e12) and not activations.is_tight(None, BATCH, 0, 0)


def test_what_is_not_known_is_recomputed_as_by_trl(deep_model: Path) -> None:
    assert choose(KEPT, None, 0, 1e12, {}) == 1
    assert choose(None, BATCH, 0, 0, {}) == 0  # a model that cannot


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_what_is_kept_is_foreseen(attention: str, deep_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    """From a few tokens, for many: also where attention is written out, which grows with the square of them."""
    import trl
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(deep_model, attn_implementation=attention)
    args = trl.SFTConfig(output_dir=str(tmp_path), **run_spec(deep_model, tiny_data).trainer.args)
    rows = load_dataset("json", data_files=str(tiny_data), split="train")
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.1, task_type="CAUSAL_LM")
    trainer = trl.SFTTrainer(model=model, args=args, train_dataset=rows, peft_config=lora)
    trainer.model.eval()
    torch.manual_seed(7)
    kept = activations.measure(trainer)
    drawn = torch.rand(1)
    torch.manual_seed(7)
    assert torch.rand(1) == drawn and not trainer.model.training, "something has moved"
    assert kept is not None and kept.layers == 5 and kept.pair > 0
    trunk = trainer.model.get_base_model().model
    weights = {weight.untyped_storage().data_ptr() for weight in trunk.parameters()}
    found: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    trainer.model.train()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        mask = torch.ones((3, 100), dtype=torch.long)
        mask[0, -20:] = 0
        left = trunk(input_ids=torch.zeros_like(mask), attention_mask=mask, use_cache=False)
    del left
    measured = sum(size for place, size in found.items() if place not in weights)
    assert kept.all(Batch(3, 100)) == pytest.approx(measured, rel=0.02)


def test_the_longest_batch_is_found(
    tiny_model: Path,
    tiny_data: Path,
    dpo_spec: Callable[..., RunSpec],
    grpo_spec: Callable[..., RunSpec],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Against what the collators make of the rows, all in one batch."""
    seen: dict[str, tuple[Batch, int]] = {}

    def look(session: Any, trainer: Any) -> None:
        found, rows = longest_batch(trainer), trainer.train_dataset
        if hasattr(trainer.args, "num_generations"):
            prompts = [len(trainer.processing_class(row["prompt"])["input_ids"]) for row in rows]
            seen["grpo"] = found, max(prompts) + trainer.args.max_completion_length
        else:
            batch = trainer.data_collator([rows[index] for index in range(len(rows))])["input_ids"]
            seen[type(trainer).__name__] = found, batch.shape[1]

    monkeypatch.setattr("rfflow.worker.training.session.TrainingSession._settle_activations", look)
    specs = [run_spec(tiny_model, tiny_data, args={"max_steps": 4}), dpo_spec(), grpo_spec()]
    train(tmp_path, specs)
    (sft, whole), (dpo, paired) = seen["SFTTrainer"], seen["DPOTrainer"]
    assert sft == Batch(4, whole)
    assert dpo.rows == 8 and paired <= dpo.tokens <= paired + 8
    found, needed = seen["grpo"]
    assert needed <= found.tokens <= needed + 40


def test_no_bit_depends_on_it(
    deep_model: Path, tiny_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Kept, every second layer, every layer; by itself, with room and without: as TRL alone."""
    caplog.set_level(logging.INFO, logger="rfflow")
    plain = run_spec(deep_model, tiny_data, evaluate=False, args={"max_steps": 8})
    alone = train_alone(plain, tmp_path / "alone")
    specs = [
        fixed(plain, False),
        fixed(plain, True, activation_checkpointing_kwargs={"every_n_layers": 2}),
        fixed(plain, True),
        auto(plain),
    ]
    runs, ended = train(tmp_path / "roomy", specs)
    for number in range(4):
        assert not ended[str(number)].differences(alone), number
    assert "Activations are kept: " in runs[3].paths.log.read_text()
    found = [run.activations for run in runs if run.activations is not None]
    assert [(one.every, one.is_chosen) for one in found] == [(0, False), (2, False), (1, False), (0, True)]
    assert found[0].why == "trainer.args.activation_checkpointing is false" and " tokens, " in found[3].why
    (short,), ended = train(tmp_path / "short", [auto(plain)], device_limit="1MB")
    assert "Activations of every layer are recomputed: kept they would take" in short.paths.log.read_text()
    assert short.activations is not None and short.activations.every == 1
    assert not ended["0"].differences(alone)


@pytest.mark.slow
def test_nor_of_preferences_and_rewards(
    dpo_spec: Callable[..., RunSpec], grpo_spec: Callable[..., RunSpec], tmp_path: Path
) -> None:
    for make in (dpo_spec, grpo_spec):
        spec = make()
        alone = train_alone(spec, tmp_path / make.__qualname__)
        _, kept = train(tmp_path / f"{make.__qualname__} kept", [auto(spec)])
        _, recomputed = train(tmp_path / f"{make.__qualname__} recomputed", [auto(spec)], device_limit="1MB")
        assert not kept["0"].differences(alone) and not recomputed["0"].differences(alone)


def test_a_run_out_of_memory_recomputes_from_then_on(
    tiny_model: Path, tiny_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is built once more anyway; and it is on record, for whoever goes on with it."""
    caplog.set_level(logging.INFO, logger="rfflow")
    plain = run_spec(tiny_model, tiny_data, chunks=4)
    OutOfMemory.left = {"recompute": 1}
    spec = auto(with_callback(plain, "OutOfMemory", step=9, name="recompute"))
    (run, other), ended = train(tmp_path / "x", [spec, auto(plain)])
    assert run.recomputes and not other.recomputes
    assert "Activations of every layer are recomputed: the memory was not enough" in run.paths.log.read_text()
    alone = train_alone(plain, tmp_path / "alone")
    assert not ended["0"].differences(alone) and not ended["1"].differences(alone)
    state = experiment_file.read(ExperimentPaths(tmp_path / "x").state)
    assert state is not None and [record.recomputes for record in state.runs] == [True, False]
    told = [record.activations for record in state.runs]
    assert told == [run.activations, other.activations] and str(other.activations) == "kept"
    assert run.activations == Activations(1, "the memory was not enough", is_chosen=True)
    (status, _) = (read_status(tmp_path / "x" / "control") or {})["runs"]
    assert (status["activations"], status["activations_why"]) == ("recomputed", "the memory was not enough")


def test_rows_laid_end_to_end_are_one_row() -> None:
    """Attention that is written out then keeps the square of all of them, and no row is cut."""
    rows = Dataset.from_dict({"input_ids": [[1] * 90, [1] * 20]})
    args = SimpleNamespace(per_device_train_batch_size=4, max_length=64)
    trainer: Any = SimpleNamespace(args=args, train_dataset=rows, padding_free=False)
    assert longest_batch(trainer) == Batch(4, 64)
    trainer.padding_free = True
    assert longest_batch(trainer) == Batch(1, 360)


def test_a_score_takes_no_vocabulary(deep_model: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    for kind, takes in ((AutoModelForCausalLM, True), (AutoModelForSequenceClassification, False)):
        model = kind.from_pretrained(deep_model, num_labels=1)
        trainer: Any = SimpleNamespace(model=model, args=SimpleNamespace(device=torch.device("cpu")))
        assert bool(activations.loss_bytes(trainer, BATCH)) == takes


def test_which_layers_recompute_outlasts_passes_of_the_reference(
    dpo_spec: Callable[..., RunSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL turns recomputing off for them and on again; chosen by us, and asked for by name."""
    plain, keep, trainers = dpo_spec(), activations.keep_choice, []
    alone = train_alone(plain, tmp_path / "alone")

    def note(trainer: Any) -> None:
        keep(trainer)
        trainers.append(trainer)

    monkeypatch.setattr(activations, "keep_choice", note)
    monkeypatch.setattr(activations, "choose", lambda *_: 2)
    asked = fixed(plain, True, activation_checkpointing_kwargs={"every_n_layers": 2, "use_reentrant": True})
    _, ended = train(tmp_path / "x", [auto(plain), asked])
    for number in range(2):
        assert not ended[str(number)].differences(alone), number
        layers = trainers[number].model.get_base_model().model.layers
        assert [layer.gradient_checkpointing for layer in layers] == [True, False]


def test_what_cannot_be_recomputed_is_kept(
    tiny_model: Path, tiny_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A prefix travels as a cache, which a layer that recomputes drops; not even after an out of memory."""
    caplog.set_level(logging.INFO, logger="rfflow")
    prefix = {"_target_": "peft.PrefixTuningConfig", "num_virtual_tokens": 4, "task_type": "CAUSAL_LM"}
    plain = replace(run_spec(tiny_model, tiny_data, evaluate=False, args={"max_steps": 8}, chunks=2), peft=prefix)
    OutOfMemory.left = {"prefix": 1}
    short = auto(with_callback(plain, "OutOfMemory", step=6, name="prefix"))
    runs, ended = train(tmp_path / "x", [auto(plain), short], device_limit="2MB")
    alone = train_alone(plain, tmp_path / "alone")
    for run in runs:
        assert "Activations are kept: this model cannot recompute them" in run.paths.log.read_text()
        assert not ended[str(run.number)].differences(alone)
