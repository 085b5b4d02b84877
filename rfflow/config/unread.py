"""Keys at the root of a configuration that nothing reads.

Hydra refuses a key that it does not know and offers to append it: ``+learning_rate=1e-3``. Appended, it would be passed
over in silence. Keys of one's own are allowed, for others to refer to or as a note; those that can only be meant for
something else are not.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from omegaconf import AnyNode, DictConfig, OmegaConf

from rfflow.config.spec import EXPERIMENT_KEYS
from rfflow.errors import ConfigError

SECTIONS = ("corpus", "retriever", "reranker", "prompt", "generator", "pipeline", "metrics", "stats")
"""Of an evaluation."""
ROOT = (
    *(*EXPERIMENT_KEYS, "lr", "seed", "chunks", "evaluate", "evaluation", "model", "dataset", "peft", "trainer"),
    *SECTIONS,
)


def unread_keys(cfg: DictConfig) -> tuple[str, ...]:
    """Return the keys at the root that are not rfflow's and that nothing refers to.

    Raises:
        ConfigError: for one that looks like one of rfflow's, misspelt.
    """
    strange = [str(key) for key in cfg if str(key) not in (*ROOT, "hydra")]
    if not strange:
        return ()
    text = repr(OmegaConf.to_container(cfg, resolve=False))
    unread = tuple(key for key in strange if not re.search(rf"\$\{{[^{{}}]*\b{re.escape(key)}\b", text))
    for key in unread:
        # recipe is a group without a key of its own: what it sets stands elsewhere
        for meant in difflib.get_close_matches(key, (*ROOT, "recipe"), n=1, cutoff=0.8):
            meant = "+recipe" if meant == "recipe" else meant
            value = cfg._get_node(key)
            plain = f"={value}" if isinstance(value, AnyNode) else ""
            raise ConfigError(f"{_nothing_reads(key)} Did you mean {meant}{plain}?")
    return unread


def check_misplaced(unread: Iterable[str], sections: Mapping[str, Any]) -> None:
    """Refuse a key at the root that is an argument of one of these dataclasses, given by where theirs are set.

    Raises:
        ConfigError: naming the key and where it belongs.
    """
    for key in unread:
        for where, made in sections.items():
            if key in {field.name for field in fields(made)}:
                raise ConfigError(f"{_nothing_reads(key)} {type(made).__name__}'s arguments are set by {where}.{key}.")


def _nothing_reads(key: str) -> str:
    return f"{key} stands at the root of the configuration, where nothing reads it."
