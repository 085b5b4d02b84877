"""Naming runs for people: by the overrides that tell them apart, in the room there is."""

from __future__ import annotations

import functools
import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rfflow.runs.run import Run

Pairs = tuple[tuple[str, str], ...]
"""The keys and values of a run's overrides."""
_UNSAFE = re.compile(r"[^A-Za-z0-9_.,+=~()\[\]{}-]+")
"""What is better not in a file's name."""
_LONGEST = 80
"""Characters that a directory's name may have."""


@dataclass(frozen=True)
class Naming:
    """What to call runs."""

    lines: Mapping[int, str]
    """By the runs' numbers."""
    heading: str = ""
    """The keys, where the lines hold values alone."""


def labels(runs: Sequence[Run], width: int | None = None) -> Mapping[int, str]:
    """Return, by run number, one line that tells the run from the others, no longer than ``width`` characters."""
    return headed_labels(runs, width).lines


def headed_labels(runs: Sequence[Run], width: int | None = None) -> Naming:
    """Return the same, and what may stand above it."""
    found = tell_apart({run.number: run.overrides for run in runs}, width)
    return Naming({run.number: found.lines[run.number] or unnamed(run.parent) for run in runs}, found.heading)


def label_parts(overrides: Mapping[int, Sequence[str]], width: int | None = None) -> Mapping[int, str]:
    """Return the overrides that not every run has, as one line a run; empty where there are none."""
    return tell_apart(overrides, width).lines


def tell_apart(overrides: Mapping[int, Sequence[str]], width: int | None = None) -> Naming:
    """Return the overrides that not every run has, in the plainest form that fits and keeps different runs apart.

    Where the room is short, keys lose the groups they lie in (unless two keys would look the same), then long values
    lose their middle, the longest first. Before little is left of them, the keys go where the runs have the same ones;
    at last goes what a key's values have in common. Where no form keeps the runs apart, lines are cut at the end, the
    shortest overrides in front.
    """
    return _tell_apart(tuple((number, tuple(parts)) for number, parts in overrides.items()), width)


@functools.lru_cache(maxsize=8)  # the live table asks again and again, and up to 20 ms for 64 runs with little room
def _tell_apart(runs: tuple[tuple[int, tuple[str, ...]], ...], width: int | None) -> Naming:
    overrides = dict(runs)
    common = set.intersection(*map(set, overrides.values())) if len(overrides) > 1 else set()
    distinct = {number: [part for part in parts if part not in common] for number, parts in overrides.items()}
    whole = {number: " ".join(part.lstrip("+") for part in parts) for number, parts in distinct.items()}
    if width is None:
        return Naming(whole)
    pairs = {
        number: tuple((override_key(part), part.partition("=")[2]) for part in parts)
        for number, parts in distinct.items()
    }
    for naming in _Forms(pairs, whole, width):
        fits = all(len(line) <= width for line in naming.lines.values())
        if fits and len(set(naming.lines.values())) == len(set(whole.values())):
            return naming
    return Naming(_Forms(pairs, whole, width).cut())


def directory_name(number: int, overrides: Sequence[str]) -> str:
    """Return a name for a run's directory that says what the run is: ``3 lr=1e-4 r=8``.

    It depends on nothing but the run, so that it stays; and every file system takes it.
    """
    short = _short_keys({override_key(part) for part in overrides})
    parts = [str(number)]
    for part in overrides:
        _, sign, value = part.partition("=")
        words = f"{short[override_key(part)]}{sign}{value}" if sign else f"~{short[override_key(part)]}"
        parts.append(_UNSAFE.sub("_", words))
    return clip_middle(" ".join(parts), _LONGEST, "..").strip()


def metric_tag(metric: str) -> str:
    """Return the tag under which loggers get a trainer's metric: ``train/loss``, ``eval/loss``."""
    return f"eval/{metric.removeprefix('eval_')}" if metric.startswith("eval_") else f"train/{metric}"


def unnamed(parent: int | None) -> str:
    """Return what to call a run without overrides of its own."""
    return "(defaults)" if parent is None else f"(clone of {parent})"


def override_key(override: str) -> str:
    """Return the key that an override sets, without Hydra's ``+`` and ``~`` marks."""
    return override.lstrip("+~").partition("=")[0]


class _Forms:
    """The ways to write the overrides of some runs, plainest first."""

    def __init__(self, runs: Mapping[int, Pairs], whole: Mapping[int, str], width: int):
        self._runs = runs
        self._whole = whole
        self._width = width
        self._short = _short_keys({key for pairs in runs.values() for key, _ in pairs})
        self._keys = list(dict.fromkeys(key for pairs in runs.values() for key, _ in pairs))

    def __iter__(self) -> Iterator[Naming]:
        generous, tight = (self._width, 24, 16, 12), (8, 6, 5)
        heading = " ".join(self._short[key] for key in self._keys)
        missing = {len(set(self._keys).difference(dict(pairs))) for pairs in self._runs.values()}
        # Clones may set a key more than the others. With more gaps than that, values alone would say little.
        are_alike = {0} <= missing <= {0, 1}
        if len(self._runs) < 2:  # there is nothing to tell it from: what comes first says most
            yield Naming(self._by_name(self._runs, generous))
            return
        for rooms in (generous, (*generous, *tight)):
            yield Naming(self._by_name(self._runs, rooms))
            if are_alike:
                yield Naming(self._fitted(self._values, self._runs, rooms), heading)
        differing = self._differing()
        yield Naming(self._by_name(differing, [self._width]))
        if are_alike:
            yield Naming(self._fitted(self._values, differing, [self._width]), heading)
        yield Naming(self.cut())
        yield Naming(self._fitted(self._values, self._runs, (*generous, *tight)), heading)
        yield Naming(self._fitted(self._values, differing, [self._width]), heading)

    def cut(self) -> dict[int, str]:
        """Return what fits of every line."""
        lines = {}
        for number, line in self._by_name(self._runs, (self._width, 24, 16, 12, 8, 6, 5)).items():
            if len(line) > self._width and len(self._runs) < 2:
                line = _cut(self._named(self._runs[number], 12), self._width)
            elif len(line) > self._width:
                by_length = " ".join(sorted((self._named((pair,), 5) for pair in self._runs[number]), key=len))
                line = _cut(by_length, self._width)
            lines[number] = line
        return lines

    def _by_name(self, runs: Mapping[int, Pairs], rooms: Sequence[int]) -> dict[int, str]:
        short = self._fitted(self._named, runs, rooms)
        return {number: line if len(line) <= self._width else short[number] for number, line in self._whole.items()}

    def _fitted(
        self, write: Callable[[Pairs, int], str], runs: Mapping[int, Pairs], rooms: Sequence[int]
    ) -> dict[int, str]:
        """Write each run with as much room for a value as its line allows, or with the least."""
        found = {}
        for number, pairs in runs.items():
            lines = [write(pairs, room) for room in rooms]
            found[number] = next((line for line in lines if len(line) <= self._width), lines[-1])
        return found

    def _named(self, pairs: Pairs, room: int) -> str:
        return " ".join(
            f"{self._short[key]}={clip_middle(value, room)}" if value else self._short[key] for key, value in pairs
        )

    def _values(self, pairs: Pairs, room: int) -> str:
        """Write the values in the order of all keys, with a dash for a key that the run has not."""
        values = {key: value or self._short[key] for key, value in pairs}
        return " ".join(clip_middle(values.get(key, "-"), room) for key in self._keys)

    def _differing(self) -> dict[int, Pairs]:
        """Return the overrides without what all values of a key begin with, and end with."""
        ends = {}
        for key in self._keys:
            values = {value for pairs in self._runs.values() for name, value in pairs if name == key}
            start = _shared_start(values)
            end = _shared_start({value[start:][::-1] for value in values})
            ends[key] = (start, end)
        return {
            number: tuple((key, _without_ends(value, *ends[key])) for key, value in pairs)
            for number, pairs in self._runs.items()
        }


def _cut(line: str, room: int) -> str:
    return line if len(line) <= room else line[: room - 1].rstrip("… ") + "…"


def _shared_start(texts: Iterable[str]) -> int:
    """Return how many characters all texts begin with."""
    columns = zip(*texts, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda characters: len(set(characters)) == 1, columns))


def _without_ends(text: str, start: int, end: int) -> str:
    short = "…" * (start > 0) + text[start : len(text) - end] + "…" * (end > 0)
    return short if len(short) < len(text) else text


def _short_keys(keys: set[str]) -> dict[str, str]:
    """Map each dotted key to its last part, or to itself where another key ends the same."""
    ends = defaultdict(list)
    for key in keys:
        ends[key.rpartition(".")[2]].append(key)
    return {key: end if len(same) == 1 else key for end, same in ends.items() for key in same}


def clip_middle(text: str, room: int, gap: str = "…") -> str:
    """Return the text, its middle left out where it is longer than ``room``."""
    if len(text) <= room:
        return text
    tail = (room - len(gap)) // 2
    return f"{text[: room - len(gap) - tail]}{gap}{text[len(text) - tail :]}"
