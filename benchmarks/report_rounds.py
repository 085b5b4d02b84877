"""What all parts of the report have in common: rounds, in which every side is measured once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, ratios
from benchmarks.sides import Trained
from benchmarks.work import Work, same_tensors

MB = 1e6
RFFLOW = "rfflow"
CAREFUL = "careful TRL"
Round = dict[str, dict[str, Any]]
"""What each side came to, by its name."""


@dataclass(frozen=True)
class Setting:
    """What a part measures with."""

    model: str
    work: Work
    runs: int
    folder: Path
    """For what is written; it is gone behind the round."""
    libraries: frozenset[str] = frozenset()
    """Which benchmark-only libraries there are."""


@dataclass(frozen=True)
class Part:
    """One question."""

    title: str
    measure: Callable[[Setting], Round]
    figures: Callable[[Sequence[Round], int], list[Figure]]
    models: tuple[str, ...] = ("tiny", "smollm2")
    rounds: int | None = None
    """How many are enough, where it is not for the caller to say."""
    by_default: bool = True


def record(trained: Trained, reference: Trained | None = None) -> dict[str, Any]:
    """Return what is kept of a side, and whether its adapters are those of ``reference``, to the last bit."""
    kept = {
        name: getattr(trained, name)
        for name in ("seconds", "cpu", "peak", "first", "began", "ended", "cpu_ended", "quarters")
    }
    if reference is not None:
        count = min(len(reference.adapters), len(trained.adapters))
        kept["equal"] = same_tensors(reference.adapters[:count], trained.adapters[:count])
    return kept


def column(rounds: Sequence[Round], side: str, name: str) -> tuple[float, ...]:
    """Return what was measured of a side, round by round."""
    return tuple(one[side][name] for one in rounds)


def against(rounds: Sequence[Round], ours: str, theirs: str, name: str = "seconds") -> tuple[float, ...]:
    """Return ratios, round by round."""
    return ratios(column(rounds, ours, name), column(rounds, theirs, name))


def megabytes(rounds: Sequence[Round], side: str) -> tuple[float, ...]:
    """Return peaks, of the rounds in which they are known."""
    return tuple(value / MB for value in column(rounds, side, "peak") if value)
