"""A run goes on with an adapter of another experiment, as TRL does with a PeftModel; another kind is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState
from datasets import load_dataset
from hydra.utils import get_object
from peft import PeftModel
from trl.trainer.utils import create_model_from_path

from rfflow.config.spec import RunSpec
from rfflow.errors import ConfigError
from rfflow.runs.run import RunState
from tests.support.plain import Outcome
from tests.support.tiny import make_model, run_spec
from tests.worker.training.test_dpo import evaluation_pairs, pairs
from tests.worker.training.test_dpo import spec as dpo_spec
from tests.worker.training.test_exactness import train_together

__all__ = ["dpo_spec", "evaluation_pairs", "pairs"]


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment of two runs, the second of which trained every weight."""
    root = tmp_path_factory.mktemp("trained")
    specs = [
        run_spec(tiny_model, tiny_data, args={"learning_rate": 1e-2}),
        run_spec(tiny_model, tiny_data, peft=None, args={"max_steps": 4}),
    ]
    runs, _ = train_together(specs, root)
    assert [run.state for run in runs] == [RunState.COMPLETED] * 2
    return root


def alone(spec: RunSpec, adapter: Path, folder: Path) -> Outcome:
    """Train on as TRL's documentation has it."""
    AcceleratorState._reset_state(reset_partial_state=True)
    args = get_object(spec.trainer.args_target)(output_dir=str(folder), **spec.trainer.args)
    rows: dict[str, Any] = {"train_dataset": load_dataset("json", data_files=spec.dataset.path, split="train")}
    if spec.dataset.eval_path:
        rows["eval_dataset"] = load_dataset("json", data_files=spec.dataset.eval_path, split="train")
    model = PeftModel.from_pretrained(
        create_model_from_path(spec.model.name, device_map=None), adapter, is_trainable=True
    )
    trainer = get_object(spec.trainer.target)(model=model, args=args, **rows)
    trainer.train()
    AcceleratorState._reset_state(reset_partial_state=True)
    return Outcome.of(trainer)


def test_it_ends_as_trl_does_with_that_adapter(
    tiny_model: Path, tiny_data: Path, trained: Path, dpo_spec: Callable[..., RunSpec], tmp_path: Path
) -> None:
    """More SFT; and DPO, which then compares with the adapter as it was, and not with the base: to the bit."""
    run, adapter = trained / "runs" / "0", trained / "runs" / "0" / "checkpoints" / "final"
    specs = [
        replace(run_spec(tiny_model, tiny_data, evaluate=False), adapter=str(run)),
        replace(dpo_spec(evaluate=False), adapter=str(adapter)),
        run_spec(tiny_model, tiny_data, evaluate=False),
    ]
    runs, together = train_together(specs, tmp_path / "together")
    assert [run.state for run in runs] == [RunState.COMPLETED] * 3, [run.error for run in runs]
    for number in (0, 1):
        assert not together[str(number)].differences(alone(specs[number], adapter, tmp_path / str(number))), number
    assert together["0"].history != together["2"].history, "it began at nothing"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"peft": {"r": 8}}, r"peft\.r is 4 there and 8 here"),
        ({"peft": {"lora_alpha": 32, "use_dora": True}}, r"peft\.lora_alpha is 8 there and 32 here; peft\.use_dora is"),
        ({"peft": {"target_modules": ["q_proj"]}}, r"v_proj.* is there and not here.*peft\.target_modules"),
        (
            {"peft": {"_target_": "peft.IA3Config", "r": None}},
            "LoraConfig and this run's a IA3Config|is not an argument",
        ),
        ({"peft": None}, "this run trains no adapter.*peft=lora"),
        ({"adapter": "nowhere"}, "model.adapter is nowhere, and there is no such directory"),
        ({"adapter": "{root}"}, "an experiment. Name one of its runs: model.adapter=.*/runs/0"),
        ({"adapter": "{root}/runs/1"}, "holds a whole model and no adapter. Train on it: model.name=.*/final"),
        ({"adapter": "{root}/runs"}, "no adapter_config.json"),
        ({"adapter": "{root}/wide/runs/0"}, "cannot be loaded: .*size mismatch|differs"),
    ],
)
def test_an_adapter_of_another_kind_is_refused(
    change: dict[str, Any], words: str, tiny_model: Path, tiny_data: Path, trained: Path, tmp_path: Path
) -> None:
    """Before anything trains, with what differs."""
    change = dict(change)
    model = tiny_model
    adapter = change.pop("adapter", "{root}/runs/0")
    if "wide" in adapter:
        model, adapter = make_model(tmp_path / "wide", hidden=32), "{root}/runs/0"
    spec = run_spec(model, tiny_data, **change)
    with pytest.raises(ConfigError, match=words):
        train_together([replace(spec, adapter=adapter.format(root=trained))], tmp_path / "refused")
