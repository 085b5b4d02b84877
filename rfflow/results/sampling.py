"""Arguments of generation on the command line, by the names that transformers has for them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import yaml

from rfflow.errors import ConfigError


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Add what says how to generate."""
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="key=value",
        help="arguments of transformers' GenerationConfig: max_new_tokens=256 (the default) temperature=0.7 top_p=0.9; "
        "without any of sampling the most likely token is taken",
    )
    parser.add_argument("--system", metavar="TEXT", help="a system prompt")
    parser.add_argument("--raw", action="store_true", help="give text as it is, without the chat template")
    parser.add_argument("--base-model", metavar="NAME", help="where the base model is now, if it has moved")
    parser.add_argument("--seed", type=int, help="of what is sampled, the same for every run")
    parser.add_argument("--accelerator", default="auto", help="cpu, cuda, mps (default: what there is)")


def read_settings(words: Sequence[str]) -> dict[str, Any]:
    """Read ``key=value`` words; values are YAML's.

    Raises:
        ConfigError: for what is none.
    """
    found: dict[str, Any] = {}
    for word in words:
        key, sign, value = word.partition("=")
        if not sign or not key.isidentifier():
            raise ConfigError(f"{word!r} is no key=value. Allowed: arguments of generation such as temperature=0.7.")
        try:
            found[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"{word!r}: the value cannot be read: {str(error).splitlines()[0]}") from error
        if isinstance(found[key], str):
            try:
                found[key] = float(found[key])  # 1e-3, which YAML takes for text
            except ValueError:
                continue
    return found
