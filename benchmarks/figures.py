"""Figures: what was measured, beside what it should be, as a table, as JSON, and in the README."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"


@dataclass(frozen=True)
class Figure:
    """One thing that was measured, as often as it was."""

    name: str
    values: tuple[float, ...]
    unit: str = ""
    """``s``, ``ms``, ``MB``, ``%``; empty for a ratio."""
    below: float | None = None
    """What the median should stay below."""

    @property
    def median(self) -> float:
        """The value in the middle."""
        return statistics.median(self.values)

    @property
    def verdict(self) -> str:
        """``yes`` or ``no``; empty where nothing is promised."""
        return "" if self.below is None else "yes" if self.median < self.below else "no"

    def row(self) -> list[str]:
        """Return the cells of its line in a table."""
        limit = "" if self.below is None else f"< {_shown(self.below)} {self.unit}".rstrip()
        middle, low, high = (_shown(value) for value in (self.median, min(self.values), max(self.values)))
        return [self.name, f"{middle} {self.unit}".rstrip(), low, high, str(len(self.values)), limit, self.verdict]


HEADER = ("what", "median", "min", "max", "n", "wanted", "met")

# Results by part, by model: {"switches": {"tiny": [Figure, ...]}}.
Results = dict[str, dict[str, list[Figure]]]


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, ...]:
    """Divide what was measured in turn, pair by pair."""
    return tuple(one / other for one, other in zip(ours, theirs, strict=True))


def table(figures: Sequence[Figure]) -> str:
    """Return a Markdown table."""
    rows = [HEADER, *(figure.row() for figure in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def read_results(path: Path) -> tuple[Results, dict[str, Any]]:
    """Read what earlier invocations have measured."""
    if not path.exists():
        return {}, {}
    document = json.loads(path.read_text(encoding="utf-8"))
    results = {
        part: {
            model: [Figure(**{**figure, "values": tuple(figure["values"])}) for figure in figures]
            for model, figures in models.items()
        }
        for part, models in document["results"].items()
    }
    return results, document["machine"]


def write_results(path: Path, results: Results) -> None:
    """Write everything that was measured."""
    document = {
        "machine": machine(),
        "results": {
            part: {model: [asdict(figure) for figure in figures] for model, figures in models.items()}
            for part, models in results.items()
        },
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def write_readme(path: Path, titles: dict[str, str], readme: Path = README) -> None:
    """Put the tables of everything measured between the marks of the README."""
    text = readme.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin and end, f"{readme} has lost its marks {BEGIN} and {END}"
    readme.write_text(f"{before}{BEGIN}\n{markdown(path, titles)}\n{END}{after}", encoding="utf-8")


def markdown(path: Path, titles: dict[str, str]) -> str:
    """Return all tables, part by part."""
    results, about = read_results(path)
    if not results:
        return "Nothing has been measured yet."
    lines = [
        f"Measured on {about['date']}: {about['cores']} cores ({about['processor']}), Python {about['python']}, "
        + ", ".join(f"{name} {number}" for name, number in about["versions"].items())
        + "."
    ]
    for part, title in titles.items():
        for model, figures in results.get(part, {}).items():
            lines += ["", f"**{title}**" + (f" ({model})" if model else ""), "", table(figures)]
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """Say where the figures come from."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "transformers", "trl", "peft")},
    }


def _shown(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
