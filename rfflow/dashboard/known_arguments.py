"""Whether a trainer and an adapter take what a configuration gives them, by what ``arguments.json`` says of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rfflow.errors import ConfigError, nearest
from rfflow.tracking.arguments import read_arguments

_KINDS: Mapping[type, tuple[str, ...]] = {int: ("int", "float"), list: ("list", "tuple", "set")}
"""What may stand where something else is meant."""


_OURS: Mapping[str, tuple[Any, ...]] = {"trainer.args.activation_checkpointing": ("auto",)}
"""Values that rfflow itself reads, before the trainer gets its own."""


def check_arguments(config: Mapping[str, Any], file: Path, parent: Mapping[str, Any]) -> None:
    """Check the names, plain types and words of a clone's arguments, as far as they are not its parent's.

    Args:
        config: the clone's configuration, resolved.
        file: ``arguments.json``.
        parent: its parent's configuration, with which that was built.

    Raises:
        ConfigError: as the experiment itself would, which knows more.
    """
    before = {where: section for where, _, section, _ in _sections(parent, file)}
    for where, name, section, known in _sections(config, file):
        for key, value in section.items():
            if key.startswith("_") or (key in before.get(where, {}) and before[where][key] == value):
                continue
            if value in _OURS.get(f"{where}.{key}", ()):
                continue
            if key not in known:
                raise ConfigError(f"{where}.{key} is not an argument of {name}.{nearest(key, known)}")
            choices, takes = known[key].get("choices") or (), known[key].get("takes") or ()
            if choices and isinstance(value, str) and value not in choices:
                raise ConfigError(
                    f"{where}.{key} is {value!r}.{nearest(value, choices)} Allowed: {', '.join(choices)}."
                )
            kinds = _KINDS.get(type(value), (type(value).__name__,))
            is_reference = isinstance(value, str) and "${" in value  # a value that is not shown
            if value is not None and takes and not is_reference and not set(kinds) & set(takes):
                raise ConfigError(
                    f"{where}.{key} is {value!r} ({type(value).__name__}). {name} takes: {', '.join(takes)}."
                )


def known_arguments(config: Mapping[str, Any], file: Path) -> dict[str, Mapping[str, Any]]:
    """Return what may be given, by its dotted name."""
    return {f"{where}.{key}": each for where, _, _, known in _sections(config, file) for key, each in known.items()}


def _sections(config: Mapping[str, Any], file: Path) -> Iterator[tuple[str, str, Mapping[str, Any], Mapping[str, Any]]]:
    classes = read_arguments(file)
    trainer, peft = config.get("trainer"), config.get("peft")
    args = trainer.get("args") if isinstance(trainer, Mapping) else None
    for where, section in (("trainer.args", args), ("peft", peft)):
        target = section.get("_target_") if isinstance(section, Mapping) else None
        if isinstance(section, Mapping) and target in classes:
            yield where, str(target).rpartition(".")[2], section, classes[str(target)]
