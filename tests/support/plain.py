"""The same training by TRL alone: what every run of ours is compared with, written as a user's script would be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from datasets import Dataset, load_dataset
from hydra.utils import get_object
from transformers import Trainer
from trl.trainer.utils import create_model_from_path

from rfflow.config.spec import TrainSpec

TIMINGS = ("runtime", "per_second", "step_time")


@dataclass
class Outcome:
    """What a training leaves behind."""

    weights: dict[str, torch.Tensor]
    history: list[dict[str, Any]]

    @classmethod
    def of(cls, trainer: Trainer) -> Outcome:
        """Read it from a trainer that has trained."""
        weights = {
            name: parameter.detach().clone()
            for name, parameter in trainer.model.named_parameters()
            if parameter.requires_grad
        }
        history = [
            {key: value for key, value in entry.items() if not key.endswith(TIMINGS)}
            for entry in trainer.state.log_history
        ]
        return cls(weights, history)

    def differences(self, other: Outcome) -> list[str]:
        """Return what is not equal to the last bit; empty when all is."""
        found = [
            name
            for name in self.weights.keys() | other.weights.keys()
            if name not in self.weights
            or name not in other.weights
            or not torch.equal(self.weights[name], other.weights[name])
        ]
        if self.history != other.history:
            found.append(f"log history: {self.history} != {other.history}")
        return sorted(found)


def train_alone(spec: TrainSpec, output_dir: Path, **given: Any) -> Outcome:
    """Train one configuration with TRL and nothing else, from paths to weights; ``given`` goes to the trainer."""
    AcceleratorState._reset_state(reset_partial_state=True)
    args = get_object(spec.trainer.args_target)(output_dir=str(output_dir), **spec.trainer.args)
    rows = load_dataset("json", data_files=spec.dataset.path, split="train")
    assert isinstance(rows, Dataset)
    peft = {key: value for key, value in spec.peft.items() if key != "_target_"} if spec.peft else None
    more: dict[str, Any] = dict(given)
    if spec.dataset.eval_path:
        paths = spec.dataset.eval_path
        sets = paths if isinstance(paths, Mapping) else {"": paths}
        read = {name: load_dataset("json", data_files=path, split="train") for name, path in sets.items()}
        more["eval_dataset"] = read if isinstance(paths, Mapping) else read[""]
    if spec.trainer.ref_model:
        more["ref_model"] = create_model_from_path(spec.trainer.ref_model.name, device_map=None)
    if "reward_funcs" in spec.trainer.kwargs and "reward_funcs" not in given:
        more["reward_funcs"] = [
            name if "/" in name else get_object(name) for name in spec.trainer.kwargs["reward_funcs"]
        ]
    trainer = get_object(spec.trainer.target)(
        model=spec.model.name,
        args=args,
        train_dataset=rows,
        peft_config=get_object(spec.peft["_target_"])(**peft) if spec.peft and peft else None,
        **more,
    )
    trainer.train()
    AcceleratorState._reset_state(reset_partial_state=True)
    return Outcome.of(trainer)
