"""Naming runs for people: by the overrides that tell them apart, in the room there is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from rfflow.runs import Run


def labels(runs: Sequence[Run], width: int | None = None) -> dict[int, str]:
    """Return, by run number, one line that tells the run from the others, no longer than ``width`` characters."""
    found = label_parts({run.number: run.overrides for run in runs}, width)
    return {run.number: found[run.number] or unnamed(run.parent) for run in runs}


def label_parts(overrides: Mapping[int, Sequence[str]], width: int | None = None) -> dict[int, str]:
    """Return the overrides that not every run has, as one line a run; empty where there are none.

    Where the room is short, keys lose the groups they lie in (unless two keys would look the same), then long values
    lose their middle, the longest first. What still does not fit is cut at the end, the shortest overrides in
    front.
    """
    common = set.intersection(*map(set, overrides.values())) if len(overrides) > 1 else set()
    distinct = {number: [part for part in parts if part not in common] for number, parts in overrides.items()}
    short_keys = _short_keys({override_key(part) for parts in distinct.values() for part in parts})
    return {number: _line(parts, short_keys, width) for number, parts in distinct.items()}


def unnamed(parent: int | None) -> str:
    """Return what to call a run without overrides of its own."""
    return "(defaults)" if parent is None else f"(clone of {parent})"


def override_key(override: str) -> str:
    """Return the key that an override sets, without Hydra's ``+`` and ``~`` marks."""
    return override.lstrip("+~").partition("=")[0]


def _line(parts: Sequence[str], short_keys: Mapping[str, str], width: int | None) -> str:
    line = " ".join(part.lstrip("+") for part in parts)
    if width is None or len(line) <= width:
        return line
    pairs = [(short_keys[override_key(part)], part.partition("=")[2]) for part in parts]
    for room in (width, 24, 16, 12, 8, 6, 5):
        short = [f"{key}={clip_middle(value, room)}" if value else key for key, value in pairs]
        if len(line := " ".join(short)) <= width:
            return line
    line = " ".join(sorted(short, key=len))
    return line[: width - 1].rstrip("…") + "…"


def _short_keys(keys: set[str]) -> dict[str, str]:
    """Map each dotted key to its last part, or to itself where another key ends the same."""
    ends = defaultdict(list)
    for key in keys:
        ends[key.rpartition(".")[2]].append(key)
    return {key: end if len(same) == 1 else key for end, same in ends.items() for key in same}


def clip_middle(text: str, room: int) -> str:
    """Return the text, its middle left out where it is longer than ``room``."""
    if len(text) <= room:
        return text
    tail = (room - 1) // 2
    return f"{text[: room - 1 - tail]}…{text[len(text) - tail :]}"
