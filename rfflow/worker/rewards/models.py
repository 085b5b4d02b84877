"""Reward models: loaded once for all runs, and asked about a few rows before any training."""

from __future__ import annotations

import json
import math
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from rfflow.config.paths import existing_path, looks_local
from rfflow.errors import ConfigError
from rfflow.worker.models.bases import Base

_loaded: weakref.WeakValueDictionary[str, Base] = weakref.WeakValueDictionary()


def reward_model(name: str, where: str, kwargs: Mapping[str, Any]) -> PreTrainedModel:
    """Return the model as TRL would load it; runs that ask for the same one share its weights.

    Args:
        name: a hub name or a folder.
        where: where it stands in the configuration.
        kwargs: arguments of ``from_pretrained``; TRL takes ``trainer.args.model_init_kwargs``.

    Raises:
        ConfigError: if it cannot be loaded, or its rewards would be random.
    """
    key = json.dumps([str(Path(name).absolute()) if looks_local(name) else name, dict(kwargs)], default=str)
    base = _loaded.get(key)
    if base is None:
        base = _loaded[key] = _load(name, where, kwargs)
    structure = base.structure()
    structure.rfflow_base = base  # the tensors are its, and it goes when the last run lets go of it
    return structure


def try_reward_model(
    model: PreTrainedModel, where: str, prompts: Sequence[Any], completions: Sequence[Any], device: torch.device
) -> None:
    """Ask a reward model about completions, as TRL does.

    Raises:
        ConfigError: if it cannot say, or what it says is not a number.
    """
    name = model.config.name_or_path
    base = getattr(model, "rfflow_base", None)
    try:
        tokenizer = base.tokenizer() if base is not None else AutoTokenizer.from_pretrained(name)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        texts = [_text(tokenizer, *pair) for pair in zip(prompts, completions, strict=True)]
        inputs = tokenizer(text=texts, return_tensors="pt", padding=True, padding_side="right").to(device)
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
        with torch.inference_mode():
            rewards = model.to(device)(**inputs).logits[:, 0].tolist()
    except Exception as error:  # a user's own model may raise anything
        raise ConfigError(
            f"{where}: the reward model {name} cannot be asked: {type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    if not all(map(math.isfinite, rewards)):
        raise ConfigError(f"{where}: the reward model {name} says {rewards[0]!r} where a number is wanted.")


def _load(name: str, where: str, kwargs: Mapping[str, Any]) -> Base:
    if looks_local(name):
        existing_path(name, where)
    try:
        model, found = AutoModelForSequenceClassification.from_pretrained(
            name, num_labels=1, output_loading_info=True, **kwargs
        )
        trusted = bool(kwargs.get("trust_remote_code"))
        tokenizer = AutoTokenizer.from_pretrained(model.config.name_or_path, trust_remote_code=trusted)
    except Exception as error:  # three libraries take part
        raise ConfigError(
            f"{where} is {name!r}, whose slash makes it the name of a reward model, and that cannot be loaded: "
            f"{type(error).__name__}: {' '.join(str(error).split())[:300]} A function is given by its dotted path, or "
            "as file.py:function."
        ) from error
    if found["missing_keys"]:
        raise ConfigError(
            f"{where} is {name!r}, a model without {', '.join(sorted(found['missing_keys']))}: its rewards would be "
            "random. Give one that was trained to judge, by trainer=reward for one."
        )
    model.requires_grad_(False)
    return Base(model, tokenizer)


def _text(tokenizer: PreTrainedTokenizerBase, prompt: Any, completion: Any) -> str:
    if isinstance(prompt, str):
        return prompt + str(completion)
    if not tokenizer.chat_template:
        raise ValueError("the rows are conversations, and its tokenizer has no chat template")
    return str(tokenizer.apply_chat_template(prompt + completion, tokenize=False))
