"""Lines that are missing from a ``metrics.jsonl``, by an editor or a disk: noticed, and put back as far as that can be.

A run counts what it logs. What its trainer has logged stands in the checkpoint's ``trainer_state.json``, too, and what
was evaluated at the ends of chunks in their results.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rfflow.files import replace_text
from rfflow.runs.run import Run
from rfflow.tracking.metrics_log import json_value

Line = dict[str, Any]


def put_back(run: Run, lines: list[Line], checkpoint: Path | None) -> int:
    """Add to a run's log the lines that are missing, as far as they are known; return how many were added.

    They bear ``"restored": true``, and the time at which their chunk ended.

    Args:
        run: whose log it is; it stands where it goes on from.
        lines: those that are there.
        checkpoint: the one that it goes on from, if any.
    """
    missing = list(_missing(run, lines, checkpoint))[: max(run.logs - len(lines), 0)]
    if missing:
        together = sorted([*lines, *missing], key=lambda line: (line["step"], _is_evaluation(line)))
        replace_text(run.paths.metrics, "".join(json.dumps(line, allow_nan=False) + "\n" for line in together))
    return len(missing)


def _missing(run: Run, lines: list[Line], checkpoint: Path | None) -> Iterator[Line]:
    there = Counter(_key(line) for line in lines)
    evaluated = {line["step"] for line in lines if _is_evaluation(line)}
    for entry in _history(checkpoint):
        line = _line(run, int(entry.pop("step")), entry)
        if there[_key(line)]:
            there[_key(line)] -= 1
        elif line["step"] <= run.step:
            evaluated.update([line["step"]] if _is_evaluation(line) else [])
            yield line
    for chunk in run.chunks:
        found = {name: value for name, value in chunk.metrics.items() if name.startswith("eval_") or name == "epoch"}
        if any(name.startswith("eval_") for name in found) and chunk.step not in evaluated:
            yield _line(run, chunk.step, found)


def _history(checkpoint: Path | None) -> list[dict[str, Any]]:
    """Return what the trainer has logged, as far as it can be read."""
    if checkpoint is None:
        return []
    try:
        history = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
        return [dict(entry) for entry in history if "step" in entry]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _line(run: Run, step: int, metrics: Mapping[str, Any]) -> Line:
    ended = [chunk for chunk in run.chunks if chunk.step >= step]
    return {
        "time": round(ended[0].ended, 3) if ended else None,
        "step": step,
        "chunk": ended[0].chunk + 1 if ended else len(run.chunks) + 1,
        # Other things than numbers are not in the log either.
        "metrics": {
            name: json_value(float(value)) for name, value in metrics.items() if isinstance(value, (int, float))
        },
        "restored": True,
    }


def _key(line: Line) -> tuple[Any, ...]:
    return line["step"], frozenset(line["metrics"].items())


def _is_evaluation(line: Line) -> bool:
    return any(name.startswith("eval_") for name in line["metrics"])
