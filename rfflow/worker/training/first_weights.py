"""``model.adapter``: a run whose adapter does not begin at nothing but as one that was trained before.

The trainer is given a ``PeftModel``, as TRL's documentation has it for an adapter that is trained on: DPO then compares
with the adapter as it was, and not with the base alone.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict, load_peft_weights
from transformers import PreTrainedModel

from rfflow.errors import ConfigError
from rfflow.files import shown

log = logging.getLogger(__name__)

WHERE = "model.adapter"
_CONFIG = "adapter_config.json"
_MAY_DIFFER = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "inference_mode",
        "init_lora_weights",
        "init_weights",
        "loftq_config",
        "lora_dropout",
        "lora_ga_config",
        "peft_version",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
    }
)
"""What says how an adapter begins or is trained. Which layers it is on shows in its weights' names."""


def with_adapter(model: PreTrainedModel, adapter: str, config: PeftConfig, name: str) -> PeftModel:
    """Wrap a model, with the weights of an adapter that exists.

    Args:
        model: the base, whose modules are the run's own.
        adapter: a run's directory, a folder that ``save_pretrained`` wrote, or a name on the hub.
        config: what the run says of its own adapter; it has to be made alike.
        name: of the base, as the run has it.

    Raises:
        ConfigError: if there is none, or it is another: naming what differs, and what to say.
    """
    place = _find(adapter)
    saved = PeftConfig.from_pretrained(place)
    if differences := _differences(saved, config):
        raise ConfigError(
            f"{WHERE} is {adapter}, which is made otherwise than this run's adapter: {'; '.join(differences)}. A run "
            "goes on with an adapter of its own kind."
        )
    if saved.base_model_name_or_path and Path(saved.base_model_name_or_path).name != Path(name).name:
        log.warning("%s is of the base %s, and is put on %s", adapter, saved.base_model_name_or_path, name)
    weights = load_peft_weights(place, device="cpu")
    wrapped = PeftModel.from_pretrained(model, place, is_trainable=True, config=config)
    _check_names(adapter, weights, get_peft_model_state_dict(wrapped))
    return wrapped


def _find(adapter: str) -> str:
    folder = Path(adapter).expanduser()
    if not folder.exists():
        if adapter.count("/") == 1 and not adapter.startswith((".", "~", "/")):
            return adapter  # the hub's
        raise ConfigError(f"{WHERE} is {adapter}, and there is no such directory.")
    final = folder / "checkpoints" / "final"
    for place in (folder, final):
        if (place / _CONFIG).is_file():
            return str(place)
    if (folder / "experiment.json").is_file():
        raise ConfigError(f"{WHERE} is {adapter}, an experiment. Name one of its runs: {WHERE}={adapter}/runs/0")
    if (whole := next((one for one in (folder, final) if (one / "config.json").is_file()), None)) is not None:
        raise ConfigError(
            f"{WHERE} is {adapter}, which holds a whole model and no adapter. Train on it: model.name={shown(whole)}"
        )
    if (folder / "checkpoints").is_dir():
        raise ConfigError(f"{WHERE} is {adapter}, a run that has not completed: it has no {shown(final)}.")
    raise ConfigError(f"{WHERE} is {adapter}, where there is no {_CONFIG}: no adapter that PEFT could load.")


def _differences(saved: PeftConfig, config: PeftConfig) -> list[str]:
    if type(saved) is not type(config):
        return [f"it is a {type(saved).__name__} and this run's a {type(config).__name__}"]
    found = []
    for field in fields(config):
        theirs, ours = getattr(saved, field.name), getattr(config, field.name)
        if field.name not in _MAY_DIFFER and (theirs or None) != (ours or None):
            found.append(f"peft.{field.name} is {theirs!r} there and {ours!r} here")
    return found


def _check_names(adapter: str, weights: Mapping[str, torch.Tensor], own: Mapping[str, Any]) -> None:
    for name in sorted(weights.keys() ^ own.keys()):
        where, other = ("there", "here") if name in weights else ("here", "there")
        raise ConfigError(
            f"{WHERE} is {adapter}: {name} is {where} and not {other}. peft.target_modules and the base have to be "
            "those that it was trained with."
        )
