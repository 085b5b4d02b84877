"""Arguments of ``from_pretrained``: those that are known by name, and those that nobody would read."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any

from rfflow.errors import ConfigError, nearest

DTYPES = ("float32", "bfloat16", "float16", "auto")

# What from_pretrained takes beside the fields of the model's config, to suggest from when a keyword is misspelt.
KEYWORDS = (
    "attn_implementation",
    "auto_class",
    "cache_dir",
    "device_map",
    "dtype",
    "force_download",
    "gguf_file",
    "ignore_mismatched_sizes",
    "key_mapping",
    "local_files_only",
    "max_memory",
    "offload_folder",
    "quantization_config",
    "revision",
    "subfolder",
    "token",
    "trust_remote_code",
    "use_safetensors",
    "variant",
)

_ONE_DEVICE = "A model stands whole on one device, which engine.accelerator and engine.device name. Leave it out."
_OURS = "It is rfflow that loads the model. Leave it out; fields of its config can be set here by their own names."
_NOBODY = "transformers takes it and passes over it. Leave it out."
_FOUR_BITS = "Choose model=qlora, or give it beside a _target_: model.quantization_config._target_=..."
_TOKENIZER = "It is the tokenizer's; save one that has it so, and give its folder as model.tokenizer."

_ANSWERS: Mapping[str, str] = types.MappingProxyType(
    {
        "adapter_kwargs": "rfflow trains an adapter of its own. Leave it out.",
        "adapter_name": "rfflow trains an adapter of its own. Leave it out.",
        "architecture": "The class is model.auto_class.",
        "config": _OURS,
        "device_mesh": _ONE_DEVICE,
        "distributed_config": _ONE_DEVICE,
        "generation_config": "What rfflow's own generation goes by is evaluation.generate.",
        "load_in_4bit": _FOUR_BITS,
        "load_in_8bit": _FOUR_BITS,
        "low_cpu_mem_usage": _NOBODY,
        "mirror": _NOBODY,
        "model_id": "The name is model.name.",
        "output_loading_info": _OURS,
        "padding_side": _TOKENIZER,
        "pretrained_model_name_or_path": "The name is model.name.",
        "state_dict": _OURS,
        "torch_dtype": "transformers calls it dtype (model.dtype=bfloat16).",
        "tp_plan": _ONE_DEVICE,
        "tp_size": _ONE_DEVICE,
        "truncation_side": _TOKENIZER,
        "use_auth_token": "transformers calls it token (model.token).",
        "use_fast": _TOKENIZER,
    }
)


def check_model_arguments(kwargs: Mapping[str, Any]) -> None:
    """Check what ``from_pretrained`` is to be given.

    Raises:
        ConfigError: for what nobody would read, or what it takes for something else than it is.
    """
    for key, why in _ANSWERS.items():
        if kwargs.get(key) is not None:
            raise ConfigError(f"model.{key} is not a setting: {why}")
    for key in ("max_memory", "offload_folder", "offload_buffers"):
        if kwargs.get(key) is not None and kwargs.get("device_map") is None:
            raise ConfigError(f"model.{key} is read only beside model.device_map. {_ONE_DEVICE}")
    dtype = kwargs.get("dtype", "float32")
    if dtype not in DTYPES:
        raise ConfigError(f"model.dtype is {dtype!r}.{nearest(str(dtype), DTYPES)} Allowed: {', '.join(DTYPES)}.")
