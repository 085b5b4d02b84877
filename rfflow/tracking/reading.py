"""What an experiment has left for people, read back."""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def read_history(path: Path, ends: Mapping[int, int]) -> list[dict[str, float]]:
    """Return what was known of a run at the end of each chunk, as :meth:`rfflow.runs.run.Run.reach` has it.

    Args:
        path: the run's ``metrics.jsonl``.
        ends: the step that ends each chunk, where it is known.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    by_chunk: dict[int, list[tuple[int, dict[str, float]]]] = defaultdict(list)
    for line in lines:
        try:
            entry = json.loads(line)
            chunk, step = int(entry["chunk"]), int(entry["step"])
        except (ValueError, TypeError, KeyError):
            continue  # torn by a crash
        if step > 0:
            by_chunk[chunk].append((step, _numbers_in(entry["metrics"])))
    return [_known(by_chunk[chunk], ends.get(chunk)) for chunk in range(1, max(by_chunk, default=0) + 1)]


def read_steps(path: Path) -> list[dict[str, Any]]:
    """Return all that a run logged in its ``metrics.jsonl``: of each step, in order, ``step``, ``chunk``, metrics."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    steps: dict[int, dict[str, Any]] = {}
    for line in lines:
        try:
            entry = json.loads(line)
            step, chunk, metrics = int(entry["step"]), entry["chunk"], _numbers_in(entry["metrics"])
        except (ValueError, TypeError, KeyError, AttributeError):
            continue  # torn by a crash
        steps.setdefault(step, {"step": step, "chunk": chunk}).update(metrics)
    return list(steps.values())


def read_points(path: Path, metric: str) -> list[tuple[int, float | None, float]]:
    """Return a metric's curve from a run's ``metrics.jsonl``: step, epoch where it was logged too, value."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    points: dict[int, tuple[int, float | None, float]] = {}
    for line in lines:
        try:
            entry = json.loads(line)
            step, metrics = int(entry["step"]), _numbers_in(entry["metrics"])
        except (ValueError, TypeError, KeyError, AttributeError):
            continue  # torn by a crash
        if metric in metrics:
            points[step] = (step, metrics.get("epoch"), metrics[metric])
    return [points[step] for step in sorted(points)]


def _numbers_in(metrics: Mapping[str, Any]) -> dict[str, float]:
    numbers = {}
    for name, value in metrics.items():
        with contextlib.suppress(TypeError, ValueError):
            numbers[name] = float(value)  # "NaN" and "Infinity" too
    return numbers


def _known(logs: Sequence[tuple[int, Mapping[str, float]]], end: int | None) -> dict[str, float]:
    """Return what was known at a chunk's end: what was evaluated there, and logged in the chunk."""
    end = max((step for step, _ in logs), default=0) if end is None else end
    known = {
        name: value
        for step, metrics in logs
        for name, value in metrics.items()
        if step == end or not name.startswith("eval_")
    }
    losses = [metrics["loss"] for _, metrics in logs if "loss" in metrics]
    return known | ({"loss": sum(losses) / len(losses)} if losses else {})  # the table's loss is of all of the chunk


def read_timeline(path: Path) -> list[dict[str, Any]]:
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))["chunks"])
    except (OSError, ValueError):
        return []
