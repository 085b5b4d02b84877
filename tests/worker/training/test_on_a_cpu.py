"""What is often said to want a GPU and doesn't: on a CPU, too, each run equals its own script alone."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from accelerate.state import AcceleratorState
from datasets import load_dataset
from lightning_fabric import Fabric
from peft import LoraConfig
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from rfflow.config.spec import MemorySpec, ModelSpec, RunSpec
from rfflow.errors import ConfigError
from rfflow.runs.run import RunState
from rfflow.worker.models.loading import load_base
from rfflow.worker.models.safetensors_io import SafetensorsIO
from rfflow.worker.shared import Shared
from rfflow.worker.training.build import build_trainer
from tests.support.plain import Outcome, train_alone
from tests.support.tiny import run_spec
from tests.worker.training.test_exactness import outcomes, train_together
from tests.worker.training.test_snapshot import begin, finish, snapshots_of

FOUR_BITS = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
QUANTISED: dict[str, tuple[Mapping[str, Any], str]] = {
    "four bits in float32": ({**FOUR_BITS, "bnb_4bit_compute_dtype": "float32"}, "float32"),
    "four bits in bfloat16": ({**FOUR_BITS, "bnb_4bit_compute_dtype": "bfloat16"}, "bfloat16"),
    "eight bits": ({"load_in_8bit": True}, "float32"),
}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "an optimizer in eight bits": {"args": {"optim": "adamw_bnb_8bit"}, "peft": None},
    "a paged optimizer": {"args": {"optim": "paged_adamw_8bit"}, "peft": None},
    "whole texts packed": {"args": {"packing": True, "packing_strategy": "bfd", "max_length": 128}},
}


def make(model: Path, data: Path, args: Mapping[str, Any] = {}, **kwargs: Any) -> RunSpec:
    return run_spec(model, data, args={"max_steps": 4, "learning_rate": 1e-2, **args}, chunks=6, **kwargs)


def train_quantised_alone(spec: RunSpec, quantization: Mapping[str, Any], dtype: str, folder: Path) -> Outcome:
    """Train a quantised model as TRL's documentation has it."""
    AcceleratorState._reset_state(reset_partial_state=True)
    config = BitsAndBytesConfig(**quantization)
    model = AutoModelForCausalLM.from_pretrained(spec.model.name, quantization_config=config, dtype=dtype)
    rows = load_dataset("json", data_files=spec.dataset.path, split="train")
    peft = {key: value for key, value in (spec.peft or {}).items() if key != "_target_"}
    args = trl.SFTConfig(output_dir=str(folder), **spec.trainer.args)
    trainer = trl.SFTTrainer(model=model, args=args, train_dataset=rows, peft_config=LoraConfig(**peft))
    trainer.train()
    AcceleratorState._reset_state(reset_partial_state=True)
    return Outcome.of(trainer)


@pytest.mark.parametrize("name", QUANTISED)
def test_adapters_on_one_quantised_base_equal_the_same_scripts_alone(
    name: str, tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    quantization, dtype = QUANTISED[name]
    node = {"_target_": "transformers.BitsAndBytesConfig", **quantization}
    # Evaluated at the boundaries: on some CPUs bitsandbytes would pack the shared weights for that, with a loss.
    rows = {"eval_path": str(tiny_data), "max_eval_samples": 4}
    kwargs = {"quantization_config": node, "dtype": dtype}
    spec = make(tiny_model, tiny_data, model_kwargs=kwargs, dataset=rows)
    specs = [spec, replace(spec, peft={**(spec.peft or {}), "r": 8})]
    seen: list[Any] = []

    def build(*args: Any) -> Any:
        seen.append(build_trainer(*args))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rfflow.worker.training.session.build_trainer", build)
        runs, together = train_together(specs, tmp_path / "experiment")
    assert [(run.state, run.error) for run in runs] == [(RunState.COMPLETED, None)] * 2
    one, two = (dict(trainer.model.named_parameters()) for trainer in seen)
    weight = next(each for each in one if each.endswith("q_proj.base_layer.weight"))
    assert one[weight] is two[weight] and one[weight].dtype in (torch.uint8, torch.int8), "one base, quantised"
    for number, run in enumerate(specs):
        alone = train_quantised_alone(run, quantization, dtype, tmp_path / "alone" / str(number))
        assert not together[str(number)].differences(alone)


@pytest.mark.parametrize("peft", [{}, {"use_dora": True}], ids=["LoRA", "DoRA"])
def test_an_adapter_on_a_quantised_base_goes_on_as_if_never_interrupted(
    peft: Mapping[str, Any], tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    """TRL has made it bfloat16, and what is loaded must be no more than that."""
    node = {"_target_": "transformers.BitsAndBytesConfig", **QUANTISED["four bits in float32"][0]}
    spec = make(tiny_model, tiny_data, model_kwargs={"quantization_config": node, "dtype": "float32"})
    spec = replace(spec, chunks=12, peft={**(spec.peft or {}), **peft})
    shared = Shared(Fabric(accelerator="cpu", devices=1, plugins=[SafetensorsIO()]), MemorySpec(), 42)
    with outcomes() as ended:
        first = begin(spec, tmp_path / "first", shared)
        (_, folder), *_ = snapshots_of(first, tmp_path / "snapshots", ends=1)
        finish(first)
        finish(begin(spec, tmp_path / "second", shared, checkpoint=folder))
    assert not ended["second"].differences(ended["first"])


def test_arguments_side_by_side_equal_the_same_scripts_alone(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    specs = [make(tiny_model, tiny_data, **variant) for variant in ARGUMENTS.values()]
    specs = [replace(spec, chunks=2) for spec in specs]
    runs, together = train_together(specs, tmp_path / "experiment")
    assert [(run.state, run.error) for run in runs] == [(RunState.COMPLETED, None)] * len(specs)
    for number, (name, variant) in enumerate(zip(ARGUMENTS, specs, strict=True)):
        assert not together[str(number)].differences(train_alone(variant, tmp_path / "alone" / str(number))), name


def test_texts_that_are_packed_whole_do_not_see_each_other(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    """Without FlashAttention: transformers' masks know where a text begins."""
    seen: list[Any] = []

    def build(*args: Any) -> Any:
        seen.append(build_trainer(*args))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rfflow.worker.training.session.build_trainer", build)
        train_together([replace(make(tiny_model, tiny_data, **ARGUMENTS["whole texts packed"]), chunks=1)], tmp_path)
    (trainer,) = seen
    batch = trainer.data_collator([trainer.train_dataset[0]])
    starts = [*torch.nonzero(batch["position_ids"][0] == 0).flatten().tolist(), batch["input_ids"].shape[1]]
    assert len(starts) > 2 and batch["input_ids"].shape[0] == 1
    model = trainer.model.eval()
    with torch.no_grad():
        packed = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
        for start, end in itertools.pairwise(starts):
            alone = model(input_ids=batch["input_ids"][:, start:end], use_cache=False).logits
            torch.testing.assert_close(packed[:, start:end], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["tiny", "some/model"])
def test_what_quantises_may_be_missing(name: str, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model on the hub is not what is wrong then."""
    monkeypatch.setattr("transformers.quantizers.quantizer_bnb_4bit.is_bitsandbytes_available", lambda *_, **__: False)
    if name == "some/model":
        monkeypatch.setattr("rfflow.worker.models.loading.looks_local", lambda name: False)
    node = {"_target_": "transformers.BitsAndBytesConfig", **FOUR_BITS}
    with pytest.raises(ConfigError, match=r"needs bitsandbytes, which is not installed: pip install 'rfflow\[qlora\]'"):
        load_base(ModelSpec(str(tiny_model), kwargs={"quantization_config": node}))


def test_nothing_is_said_of_kernels_that_are_not_used() -> None:
    """Each command of everybody who has bitsandbytes would begin with it."""
    assert not logging.getLogger("bitsandbytes.backends.cpu.ops").isEnabledFor(logging.WARNING)
