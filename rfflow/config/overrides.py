"""Hydra's overrides, as people wrote them and as they want to read them."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

_ESCAPED = re.compile(r"\\(.)")


def setting_apart(job: Sequence[str], sweep: Iterable[str]) -> tuple[str, ...]:
    """Return the overrides of a job that are not those of every job of its sweep.

    Args:
        job: the overrides of one job, such as ``["+recipe=sft", "lr=0.001"]``.
        sweep: what was asked of the sweep, such as ``["+recipe=sft", "lr=1e-3,1e-4"]``.

    A sweep of one job has none of its own; then they are all returned, because a run wants a name.
    """
    common = {_text(override) for override in map(_parse, sweep) if not override.is_sweep_override()}
    own = tuple(text for text in job if _text(_parse(text)) not in common)
    return own or tuple(job)


def on_top(parent: Sequence[str], own: Sequence[str]) -> list[str]:
    """Return a parent's overrides with a clone's own on top.

    An override of the same key takes the parent's place; it may leave out the plus that the parent needed, because the
    key is there now (``+recipe=sft`` and then ``recipe=dpo``).
    """
    overrides = {text: _parse(text) for text in parent}
    for text in own:
        new = _parse(text)
        if new.is_delete():
            overrides[text] = new  # after what it deletes
            continue
        same = [old for old, override in overrides.items() if _key(override) == _key(new) and not override.is_delete()]
        needs_plus = any(overrides.pop(old).is_add() for old in same)
        overrides[f"+{text}" if needs_plus and not text.startswith("+") else text] = new
    return list(overrides)


def as_written(job: Sequence[str]) -> list[str]:
    """Return the overrides of a job as people write them: a sweeper hands ``${peft.r}`` on as ``$\\{peft.r\\}``."""
    return [_plainer(text) if r"$\{" in text else text for text in job]


def _plainer(text: str) -> str:
    key, _, value = text.partition("=")
    if value[:1] in ("[", "{", "'", '"'):
        return text
    written = "=".join((key, _ESCAPED.sub(r"\1", value)))
    try:
        _parse(written)
    except HydraException:
        return text
    return written


@functools.cache  # half a millisecond each, and the clones and trials of an experiment repeat most of them
def _parse(text: str) -> Override:
    return OverridesParser.create().parse_overrides([text])[0]


def _key(override: Override) -> tuple[str, str | None]:
    return override.key_or_group, override.package


def _text(override: Override) -> str:
    """Write an override as Hydra's sweepers do, so that quotes and blanks make no difference."""
    if override.is_delete():
        return override.get_key_element()  # a sweeper writes ~key= for ~key
    return f"{override.get_key_element()}={override.get_value_element_as_str()}"
