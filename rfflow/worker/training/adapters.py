"""Settings of PEFT that name something in the model, or each other: what meets nothing is passed over by PEFT."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from peft import PeftConfig, PeftModel
from torch import nn

from rfflow.errors import ConfigError, nearest

_WITH_START: Mapping[str, str] = {"loftq_config": "loftq", "eva_config": "eva", "corda_config": "corda"}
"""Settings of a start of the weights, and the start (``init_lora_weights``) that reads them."""


def check_settings(given: Mapping[str, Any], config: PeftConfig) -> None:
    """Check settings against each other, as far as PEFT does not.

    Raises:
        ConfigError: for what would train nothing, or that nobody would read.
    """
    if given.get("inference_mode"):
        raise ConfigError("peft.inference_mode is True: the adapter would be left as it is. Leave it out.")
    if given.get("base_model_name_or_path"):
        raise ConfigError(
            f"peft.base_model_name_or_path is {given['base_model_name_or_path']!r}, and nothing would read it: the "
            "model is model.name, which is written into the adapter's config."
        )
    for key, start in _WITH_START.items():
        said = str(getattr(config, "init_lora_weights", "")).lower()
        if given.get(key) and not said.startswith(start):
            raise ConfigError(
                f"peft.{key} is given, and nothing would read it: that is for peft.init_lora_weights={start}, which is "
                f"{said!r}."
            )


def check_met(model: nn.Module) -> None:
    """Check that what the adapter's settings name is there, once the adapter is made.

    Raises:
        ConfigError: for a pattern that met no module of the adapter, and for a layer that there is not.
    """
    if not isinstance(model, PeftModel):
        return
    config = model.peft_config[model.active_adapters[0]]
    met = list(getattr(model.base_model, "targeted_module_names", ()))
    if not met:
        return
    for key in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(config, key, None) or {}:
            # As PEFT compares them.
            if not any(re.match(rf"(.*\.)?({pattern})$", name) for name in met):
                leaves = sorted({name.rsplit(".", 1)[-1] for name in met})
                raise ConfigError(
                    f"peft.{key} has {pattern!r}, which is no module that the adapter is on.{nearest(pattern, leaves)} "
                    f"Those: {', '.join(leaves)}."
                )
    layers = getattr(config, "layers_to_transform", None)
    for layer in [] if layers is None else [layers] if isinstance(layers, int) else layers:
        if not any(re.search(rf"\.{layer}\.", name) for name in met):
            raise ConfigError(
                f"peft.layers_to_transform has {layer}, and the adapter met no such layer. Layers are counted from 0."
            )
