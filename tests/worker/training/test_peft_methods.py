"""PEFT's methods side by side on one base: each run equals its own script alone, and the base stays as it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rfflow.config.spec import RunSpec
from rfflow.errors import ConfigError
from rfflow.runs.run import RunState
from rfflow.worker.training.build import build_trainer
from tests.launch.test_cli import Shell
from tests.support.plain import train_alone
from tests.support.tiny import run_spec
from tests.worker.training.test_exactness import train_together

TASK = {"task_type": "CAUSAL_LM"}
METHODS: dict[str, dict[str, Any]] = {
    "LoRA": {"_target_": "peft.LoraConfig", "r": 4, "lora_dropout": 0.1, **TASK},
    "DoRA": {"_target_": "peft.LoraConfig", "r": 4, "use_dora": True, "target_modules": "all-linear", **TASK},
    "rsLoRA": {"_target_": "peft.LoraConfig", "r": 8, "use_rslora": True, **TASK},
    "modules to save": {"_target_": "peft.LoraConfig", "r": 2, "modules_to_save": ["lm_head"], **TASK},
    "ranks by pattern": {"_target_": "peft.LoraConfig", "r": 2, "rank_pattern": {"q_proj": 8}, **TASK},
    "IA3": {"_target_": "peft.IA3Config", **TASK},
    "LoHa": {"_target_": "peft.LoHaConfig", "r": 2, "target_modules": ["q_proj"], **TASK},
    "prompt tuning": {"_target_": "peft.PromptTuningConfig", "num_virtual_tokens": 4, **TASK},
    "PiSSA": {"_target_": "peft.LoraConfig", "r": 4, "init_lora_weights": "pissa", **TASK},
}


def make(tiny_model: Path, tiny_data: Path, peft: dict[str, Any], **kwargs: Any) -> RunSpec:
    run = run_spec(tiny_model, tiny_data, args={"max_steps": 6, "learning_rate": 1e-2}, chunks=4, **kwargs)
    return replace(run, peft=peft)


def test_methods_side_by_side_equal_the_same_scripts_alone(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    """Those that change the base's own weights to begin with get a base of their own."""
    specs = [make(tiny_model, tiny_data, method) for method in METHODS.values()]
    runs, together = train_together(specs, tmp_path / "experiment")
    assert [(run.state, run.error) for run in runs] == [(RunState.COMPLETED, None)] * len(specs)
    for number, (name, variant) in enumerate(zip(METHODS, specs, strict=True)):
        assert not together[str(number)].differences(train_alone(variant, tmp_path / "alone" / str(number))), name


def test_adapters_are_float32_on_a_base_in_bfloat16(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    """As PEFT makes them; what from_pretrained takes reaches it by its own name."""
    model_kwargs = {"dtype": "bfloat16", "attn_implementation": "eager", "device_map": None}
    run = make(tiny_model, tiny_data, METHODS["LoRA"], model_kwargs=model_kwargs)
    seen: list[Any] = []

    def build(*args: Any) -> Any:
        seen.append(build_trainer(*args))
        return seen[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rfflow.worker.training.session.build_trainer", build)
        (trained,), _ = train_together([run], tmp_path)
    assert trained.state is RunState.COMPLETED, trained.error
    parameters = dict(seen[0].model.named_parameters())
    dtypes = {(parameter.requires_grad, parameter.dtype) for parameter in parameters.values()}
    assert dtypes == {(True, torch.float32), (False, torch.bfloat16)}
    assert seen[0].model.config._attn_implementation == "eager"


def test_a_device_map_of_one_device_changes_nothing(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    maps: list[Any] = ["cpu", "auto", {"": "cpu"}]
    specs = [make(tiny_model, tiny_data, METHODS["LoRA"], model_kwargs={"device_map": where}) for where in maps]
    runs, together = train_together(specs, tmp_path / "experiment")
    assert [(run.state, run.error) for run in runs] == [(RunState.COMPLETED, None)] * 3
    alone = train_alone(specs[0], tmp_path / "alone")
    assert not [number for number in together if together[number].differences(alone)]


@pytest.mark.parametrize(
    ("peft", "said"),
    [
        ({"_target_": "peft.IA3Config", "r": 4}, "peft.r is not an argument of IA3Config"),
        ({"_target_": "peft.LoraConfg"}, "peft has no 'LoraConfg'. Did you mean 'LoraConfig'"),
        ({"_target_": "peft.LoraConfig", "modules_to_save": ["lm_hed"]}, "called 'lm_hed'. Did you mean 'lm_head'"),
    ],
)
def test_what_peft_does_not_know_is_named(
    tiny_model: Path, tiny_data: Path, tmp_path: Path, peft: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        train_together([make(tiny_model, tiny_data, peft)], tmp_path)


@pytest.mark.usefixtures("hydra_restore_singletons")
def test_a_model_in_four_bits_composes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two runs on it would share one base."""
    monkeypatch.chdir(tmp_path)
    rfflow = Shell(capsys, monkeypatch)
    rfflow("+recipe=sft", "model=qlora", "model.name=some/model", "--multirun", "peft=lora_small,lora_large")
    one, two = (run.spec.model for run in rfflow.engines[0].runs)
    assert one.key == two.key
    config = one.kwargs["quantization_config"]
    assert config["bnb_4bit_quant_type"] == "nf4" and config["_target_"] == "transformers.BitsAndBytesConfig"
