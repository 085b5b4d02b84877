"""What of a configuration is not for everybody's eyes: tokens and the like, and what comes from the environment.

A configuration is shown in many places (experiment.json, TensorBoard, ops.jsonl, messages), and others can read files.
What comes in by ``${oc.env:HF_TOKEN}`` is shown as that, wherever it has got to by references; what stands under a key
such as ``token`` or ``api_key`` is not shown at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.basecontainer import BaseContainer
from omegaconf.resolvers.oc import env

HIDDEN = "(hidden)"

_SECRET = (
    r"(?:\w+[_-])?(?:(?:hf|hub|auth|access|api|bearer|refresh|session|github|wandb)[_-]?token|api[_-]?key|access[_-]?key"
    r"|secret(?:[_-]?key)?|private[_-]?key|passw(?:or)?d|passphrase|credentials?)|token"
)
_SECRET_KEY = re.compile(_SECRET, re.IGNORECASE)
_SECRET_VARIABLE = re.compile(r"\$\{oc\.env:[^}]*(?:TOKEN|SECRET|PASSW|KEY|CREDENTIAL|AUTH)", re.IGNORECASE)
_GIVEN = re.compile(
    rf"""(?<!\w)((?:{_SECRET})["']?\s*[=:]\s*)(?!\$\{{|(?:null|true|false)\b)("[^"]*"|'[^']*'|[^\s,}}\]]+)""",
    re.IGNORECASE,
)
"""A secret beside its key, in an override, a mapping, JSON or YAML."""

_seen: set[str] = set()
"""Secrets that this process has read, to be taken out of messages."""

_OPEN, _OTHER, _CLOSE = "\ue000", "\ue001", "\ue002"
"""Letters that nobody uses, around the name of a variable."""


@dataclass(frozen=True)
class Shown:
    """A resolved configuration as it may be shown."""

    config: dict[str, Any]
    hidden: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The values that are not shown as they are, by their dotted names; secrets are not among them."""


def shown_config(cfg: DictConfig, resolved: Mapping[str, Any]) -> Shown:
    """Return what may be shown of a configuration.

    Args:
        cfg: the configuration with its references.
        resolved: the same as plain values; it is left as it is.
    """
    written: Any = OmegaConf.to_container(cfg, resolve=False)
    looks_elsewhere = "oc.env" in str(written)
    first = _Environment(cfg, _OPEN) if looks_elsewhere else None
    second = _Environment(cfg, _OTHER) if looks_elsewhere else None
    hidden: dict[str, str] = {}

    def show(value: str, path: tuple[str | int, ...]) -> str:
        text = value
        if first is not None and second is not None:
            one, other = first.at(path), second.at(path)
            if one is None or one != other:
                text = _readable(one) or _as_written(written, path)  # where a resolver has made something of the marks
        if _is_secret(path) or _SECRET_VARIABLE.search(text):
            _seen.update([value] if len(value) >= 6 else [])
            return text if text != value else HIDDEN
        if text != value:
            hidden[".".join(map(str, path))] = value
            return text
        return redacted(value) if value.startswith("{") else value  # JSON may have keys of its own

    def show_reference(value: str, path: tuple[str | int, ...]) -> str:
        return without_secrets(value) if "${" in _as_written(written, path) else value

    found = _mapped(resolved, show)
    return Shown(_mapped(found, show_reference) if _seen and "${" in str(written) else found, hidden)


def redacted(text: str) -> str:
    """Return an override, or what else has keys in it, without known secrets and what stands beside a secret's key."""
    return _GIVEN.sub(rf"\1{HIDDEN}", without_secrets(text))


def without_secrets(text: str) -> str:
    """Return any text without the secrets that this process knows."""
    for value in sorted(_seen, key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    return text


def known_secrets() -> frozenset[str]:
    """Return the secrets that this process knows, for another one of the same experiment."""
    return frozenset(_seen)


def learn_secrets(values: Iterable[str]) -> None:
    """Take secrets that another process knows out of messages, too."""
    _seen.update(values)


def digest(value: str, salt: str | None = None) -> str:
    """Return what tells a value from others and does not show it, with the salt that it was made with."""
    salt = salt or secrets.token_hex(8)
    return f"{salt}:{hashlib.sha256((salt + value).encode()).hexdigest()}"


def is_digest_of(made: str, value: str) -> bool:
    """Whether it is of this value."""
    return digest(value, made.partition(":")[0]) == made


def is_secret(key: str) -> bool:
    """Whether what stands under a dotted key is a secret."""
    return _is_secret(tuple(key.split(".")))


def _is_secret(path: tuple[str | int, ...]) -> bool:
    key = next((part for part in reversed(path) if isinstance(part, str) and not part.isdigit()), "")
    return _SECRET_KEY.fullmatch(key) is not None


def _mapped(node: Any, show: Callable[[str, tuple[str | int, ...]], str], path: tuple[str | int, ...] = ()) -> Any:
    if isinstance(node, Mapping):
        return {key: _mapped(value, show, (*path, key)) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_mapped(value, show, (*path, index)) for index, value in enumerate(node)]
    return show(node, path) if isinstance(node, str) else node


class _Environment:
    """A configuration as it would be if every variable of the environment were another."""

    def __init__(self, cfg: DictConfig, mark: str):
        self._cfg = cfg
        self._mark = mark

    def at(self, path: tuple[str | int, ...]) -> str | None:
        """Return the value there; None where there would be none."""
        with self._replaced():
            try:
                node: Any = self._cfg
                for key in path:
                    node = node[key]
            except Exception:  # a resolver, which may be a user's, makes nothing of it
                return None
        return node if isinstance(node, str) else None

    @contextlib.contextmanager
    def _replaced(self) -> Iterator[None]:
        original = BaseContainer._resolvers["oc.env"]

        def marked(key: str, *default: Any) -> Any:
            return f"{self._mark}{key}{_CLOSE}" if key in os.environ else env(key, *default)

        OmegaConf.register_new_resolver("oc.env", marked, replace=True)
        try:
            yield
        finally:
            BaseContainer._resolvers["oc.env"] = original


def _readable(text: str | None) -> str:
    """Write ``${oc.env:NAME}`` where the marks are; return nothing where they are not as they were made."""
    written = re.sub(f"{_OPEN}(.*?){_CLOSE}", r"${oc.env:\1}", text or "")
    return "" if re.search(f"[{_OPEN}{_CLOSE}]", written) else written


def _as_written(node: Any, path: tuple[str | int, ...]) -> str:
    with contextlib.suppress(KeyError, IndexError, TypeError):
        for key in path:
            node = node[key]
    return node if isinstance(node, str) else "${oc.env:...}"
