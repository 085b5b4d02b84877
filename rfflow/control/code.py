"""What of a configuration becomes code, or is loaded from somewhere, and whether a clone brings any that is new.

Whoever can write into the control directory can issue ops, and an op must not make the experiment import or load what
the experiment itself does not name. That is decided by what a clone's configuration has come to be, not by the words of
the op; and by what may pass, not by what may not: numbers, yes and no, words that a library chooses among, and
sentences for a function of the user's. Everything else has to stand, in the same place, in one of the configurations
that the experiment was started with, or come from a config group that was chosen. docs/security.md lists the places
where a value becomes code.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rfflow.confidential import HIDDEN, is_secret
from rfflow.config.spec import EXPERIMENT_KEYS
from rfflow.control.selection import shown
from rfflow.errors import ConfigError

CODE_KEYS = ("_target_", "_args_", "_partial_", "_convert_", "_recursive_")
"""Keys by which Hydra is told, at any depth, what to call and how."""
LOADING: Mapping[str, bool] = {
    "trust_remote_code": False,
    "use_kernels": False,
    "allow_all_kernels": False,
    "weights_only": True,
    "use_safetensors": True,
}
"""Keys that, at any depth, let code come with what is loaded by a mere yes or no; with the answer that is harmless."""
SWITCHES: Mapping[str, bool] = {**LOADING, "use_vllm": False, "push_to_hub": False}
"""The same, and those that let in what another process sends, or let weights out."""

# Where a library chooses by a word, or takes a text that it never loads from: the words and texts that may stand there.
_WORD, _TEXT = r"\w+", r"[^$]*"
_CHOSEN: Mapping[str, str] = {
    "model.dtype": _WORD,
    "model.auto_class": r"AutoModel\w*",
    "model.attn_implementation": "eager|sdpa|flex_attention",  # the others may be fetched as kernels from the hub
    "model.quantization_config.bnb_4bit_(quant_type|compute_dtype|quant_storage)": _WORD,
    r"dataset\.(datasets\.(\w+\.)?)?(split|eval_split(\.\w+)?)": r"[\w.+\[\]:%-]+",
    r"dataset\.(datasets\.(\w+\.)?)?(sample_by|stopping_strategy)": _WORD,
    r"dataset\.(datasets\.(\w+\.)?)?columns\..*": _TEXT,
    "peft.(bias|task_type|init_lora_weights)": _WORD,
    "peft.(target_modules|exclude_modules|modules_to_save|layers_pattern|target_parameters)": _TEXT,
    "trainer.args.(lr_scheduler_type|optim|loss_type|f_divergence_type|scale_rewards|importance_sampling_level)": _WORD,
    "trainer.args.(packing_strategy|truncation_mode|train_sampling_strategy|multi_objective_aggregation)": _WORD,
    "trainer.args.(eval_strategy|save_strategy|logging_strategy|log_level|include_for_metrics)": _WORD,
    "trainer.args.(vllm_importance_sampling_mode|cache_implementation)": _WORD,
    "trainer.args.torch_compile_mode": r"[\w-]+",
    "trainer.args.(dataset_text_field|length_column_name|label_names|metric_for_best_model|run_name)": _TEXT,
    "trainer.args.(optim_target_modules|eos_token|pad_token)": _TEXT,
    r"prompt\.(system|user|answer)": _TEXT,  # templates of Jinja, in its sandbox
    "retriever.(stopwords|pooling)": _WORD,
    "retriever.(query_prefix|document_prefix)": _TEXT,
    "stats.interval": _WORD,
    "evaluation.generate.(cache_implementation|stop_strings)": _TEXT,
}
_FUNCTIONS = ("dataset.formatting_func", "trainer.reward_funcs", "evaluation.generate.scores")
"""Whose arguments may be sentences."""
_OURS = (
    *(*EXPERIMENT_KEYS, "model", "dataset", "peft", "trainer", "evaluation"),
    *("corpus", "retriever", "reranker", "prompt", "generator", "stats"),
)
"""Sections in which a sentence may stand only where it is said above."""
_LOADED = (
    r"model\.(name|revision|subfolder)|generator\.adapter|corpus\.(path|name|config)"
    r"|dataset\.(datasets\.(\w+\.)?)?(path|name|config)"
)
"""Where a number would be a name, too."""
_SAME: Mapping[str, str] = {
    "model.tokenizer": "model.name",
    "trainer.ref_model": "model.name",
    "trainer.ref_model.name": "model.name",
    "trainer.ref_model.tokenizer": "model.name",
    "retriever.model.name": "model.name",
    "retriever.model.tokenizer": "model.name",
    "reranker.model.name": "model.name",
    "reranker.model.tokenizer": "model.name",
}
"""Places that load in the same way as another."""

_Leaf = tuple[tuple[str | int, ...], Any]
_Named = tuple[str, str]
"""A place and what stands there."""


class Named:
    """What some configurations name: code, files, folders, hub names, and the switches that let code in."""

    def __init__(self) -> None:
        self._all: set[_Named] = set()
        self._trusting: list[frozenset[_Named]] = []
        """By configuration, of those that let code come with what is loaded."""

    def add(self, config: Mapping[str, Any]) -> None:
        """Take in a resolved configuration."""
        named = frozenset(_named(leaf) for leaf in _leaves(config) if not _is_harmless(*leaf))
        self._all |= named
        if _trusted(config):
            self._trusting.append(named)

    def check(self, config: Mapping[str, Any]) -> None:
        """Check that a resolved configuration names nothing else.

        Raises:
            ConfigError: naming the key and its value.
        """
        named = []
        for path, value in _leaves(config):
            if _is_harmless(path, value):
                continue
            named.append(_named((path, value)))
            if named[-1] not in self._all:
                said = HIDDEN if is_secret(_dotted(path)) else shown(value)
                raise ConfigError(
                    f"{_dotted(path)} would be {said}, and an op may bring nothing that can be imported or "
                    "loaded, or that lets code in, unless the experiment's own configurations have it there or a "
                    "config group that is chosen (model=..., dataset=...). It may bring numbers, yes or no, and words "
                    "such as trainer.args.optim=sgd. docs/security.md says what goes where."
                )
        if (key := _trusted(config)) and not any(trusting.issuperset(named) for trusting in self._trusting):
            raise ConfigError(
                f"{key} lets code come with what is loaded, and no configuration of the experiment that says so loads "
                "the same. An op may not put the two together anew."
            )


def _trusted(config: Mapping[str, Any]) -> str:
    """Return a key by which a configuration lets code come with what it loads; empty where there is none."""
    leaves = ((path, value) for path, value in _leaves(config) if any(part in LOADING for part in path))
    return _dotted(next((path for path, value in leaves if not _is_harmless(path, value)), ()))


def _named(leaf: _Leaf) -> _Named:
    path, value = leaf
    return _place(path), value if isinstance(value, str) else json.dumps(value, default=str)


def _place(path: Sequence[str | int]) -> str:
    """Return where something stands, lists or not, with or without a ``_target_``."""
    place = ".".join(str(part) for part in path if not isinstance(part, int) and part != "_target_")
    if re.fullmatch(r"dataset\.(eval_path(\.\w+)?|datasets|datasets(\.\w+)?\.path)", place):
        return "dataset.path"  # a set to evaluate on, or one of several data sets, loads as the only one does
    return _SAME.get(place, place)


def _dotted(path: Iterable[str | int]) -> str:
    return ".".join(map(str, path))


def _leaves(node: Any, path: tuple[str | int, ...] = ()) -> Iterator[_Leaf]:
    """Yield every value with where it stands; a trainer's arguments that are JSON are what they say."""
    if isinstance(node, str):
        read = _json(node)
        yield from _leaves(read, path) if read is not None else ()
        if read is None or path[:2] != ("trainer", "args"):
            yield path, node
    elif isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _leaves(value, (*path, str(key)))
    elif isinstance(node, list | tuple) and node:
        for index, value in enumerate(node):
            yield from _leaves(value, (*path, index))
    else:
        yield path, node


def _json(text: str) -> Any:
    if not text.startswith("{"):
        return None
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(text)
    return None


def _is_harmless(path: tuple[str | int, ...], value: Any) -> bool:
    """Whether nothing is imported or loaded by a value where it stands, whatever it is."""
    if any(part in CODE_KEYS for part in path):
        return False
    if any(part in SWITCHES for part in path):  # a list or a mapping is as good as a yes, whatever is in it
        return value is None or value is SWITCHES.get(str(path[-1]))
    place = _place(path)
    if value is None or value in ({}, []):
        return True
    if isinstance(value, bool | int | float):
        return re.fullmatch(_LOADED, place) is None
    if not isinstance(value, str):
        return False
    return any(
        re.fullmatch(where, place) and re.fullmatch(what, value) for where, what in _CHOSEN.items()
    ) or _may_be_sentence(path, place, value)


def _may_be_sentence(path: tuple[str | int, ...], place: str, text: str) -> bool:
    """Whether text is one that people read, where such text may be: nothing that could be found under that name."""
    if path[0] in _OURS and not any(place.startswith(f"{function}.") for function in _FUNCTIONS):
        return False
    if not re.search(r"\s", text.strip()) or re.search(r"\$[A-Za-z_{(]|://|\\|\A[/~.{\[]|(\A|/)\.\.(/|\Z)", text):
        return False
    return not os.path.lexists(text)
