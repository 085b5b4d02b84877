"""Read and check what servers allow and cost: ``limits`` and ``prices``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar
from urllib.parse import urlsplit

from rfflow.config.fields import settings_of, whole_number
from rfflow.config.spec import LimitSpec, Node, PriceSpec, QuotasSpec
from rfflow.errors import ConfigError

T = TypeVar("T")
_SHAPES = {
    "limits": "{small: {rpm: 500, tpm: 200000, concurrency: 32, usd: 5}}",
    "prices": "{small: {input: 0.15, output: 0.6}}",
}
_KEYS = "Its keys are models, hosts of servers, or both as host/model."


def read_quotas(config: Node) -> QuotasSpec:
    """Read and check both.

    Raises:
        ConfigError: naming the setting that cannot be.
    """
    return QuotasSpec(
        limits={key: _limit(node, f"limits.{key}") for key, node in _nodes(config.get("limits"), "limits").items()},
        prices={key: _price(node, f"prices.{key}") for key, node in _nodes(config.get("prices"), "prices").items()},
    )


def key_for(keys: Mapping[str, T], server: str, model: str) -> str | None:
    """Return the key that says most about a model of a server; ``None`` where none says anything.

    Args:
        keys: by model, by server, or by ``server/model``.
        server: its host, with the port if one is named.
        model: as the server calls it.
    """
    return next((key for key in (f"{server}/{model}", model, server) if key in keys), None)


def asked_of(generator: Node | None) -> tuple[str, str] | None:
    """Return the host of the server and the model that a generator asks; ``None`` for one that asks no server."""
    if generator is None or "model" not in generator or not str(generator["_target_"]).endswith(".ServerGenerator"):
        return None
    return host_of(url_of(generator.get("base_url"))), str(generator["model"])


def url_of(base_url: str | None) -> str:
    """Return where the official client would ask."""
    return base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"


def host_of(url: str) -> str:
    """Return the host of a URL, with its port if it has one."""
    return urlsplit(url).netloc or url


def _nodes(section: Any, name: str) -> dict[str, Any]:
    if section and not isinstance(section, Mapping):
        raise ConfigError(f"{name} is {section!r}. Allowed: {_SHAPES[name]}. {_KEYS}")
    found = {str(key): node for key, node in (section or {}).items() if node is not None}
    for key, node in found.items():
        if not isinstance(node, Mapping):
            raise ConfigError(f"{name}.{key} is {node!r}. Allowed: {_SHAPES[name]}. {_KEYS}")
    return found


def _limit(node: Mapping[str, Any], where: str) -> LimitSpec:
    names = [field.name for field in fields(LimitSpec)]
    settings = {key: value for key, value in settings_of(node, where, names).items() if value is not None}
    for key in ("rpm", "tpm", "usd"):
        if key in settings and not _is_number(settings[key], above=0):
            raise ConfigError(f"{where}.{key} is {settings[key]!r}. Allowed: a number above 0, or null for no limit.")
    if "concurrency" in settings:
        whole_number(settings["concurrency"], f"{where}.concurrency")
    return LimitSpec(**settings)


def _price(node: Mapping[str, Any], where: str) -> PriceSpec:
    settings = settings_of(node, where, [field.name for field in fields(PriceSpec)])
    for key in ("input", "output"):
        if not _is_number(settings.get(key)):
            raise ConfigError(
                f"{where}.{key} is {settings.get(key)!r}. Allowed: what a million tokens cost in USD, from 0 up."
            )
    return PriceSpec(**settings)


def _is_number(value: Any, above: float | None = None) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return value >= 0 if above is None else value > above
