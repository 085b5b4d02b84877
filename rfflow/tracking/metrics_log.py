"""Everything a run logs, as lines of JSON in its own directory."""

from __future__ import annotations

import json
import math
import time
from bisect import bisect_left
from collections.abc import Mapping

from rfflow.checkpointing.disk import is_disk_trouble, unsaved
from rfflow.runs.experiment import Experiment
from rfflow.runs.run import Run


class MetricsLog:
    """Append every log of a run to its ``metrics.jsonl``.

    A line is ``{"time": seconds since the epoch, "step": optimizer steps done, "chunk": which chunk of the run, from 1,
    "metrics": {name: value}}``. JSON has no NaN and no infinity: they are the strings "NaN", "Infinity" and
    "-Infinity", which ``float()`` reads. A line that was missing when the experiment went on, and was put back, has
    ``"restored": true``. A disk without room ends the experiment: it is the one of the checkpoints.
    """

    def on_log(self, experiment: Experiment, run: Run, metrics: Mapping[str, float], step: int) -> None:
        """Append one line."""
        line = {
            "time": round(time.time(), 3),
            "step": step,
            "chunk": chunk_at(run, step),
            "metrics": {name: json_value(value) for name, value in metrics.items()},
        }
        try:
            run.paths.metrics.parent.mkdir(parents=True, exist_ok=True)
            # Opened anew each time: a handle a run would be many, and a line is on disk as soon as it is logged.
            with run.paths.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")
        except OSError as error:
            if is_disk_trouble(error):  # of the disk that holds the checkpoints: the line would be missing for good
                raise unsaved(f"what run {run.number} logs", error, experiment.paths.root) from error
            raise


def chunk_at(run: Run, step: int) -> int | None:
    """Return the chunk that a step belongs to, counted from 1; a boundary belongs to the chunk that it ends."""
    if run.plan is None:
        return None
    return min(bisect_left(run.plan.ends, step) + 1, len(run.plan))


def json_value(value: object) -> object:
    """Return a value as the log has it."""
    if value is None or isinstance(value, str | bool | int):
        return value
    try:
        number = float(value)  # type: ignore[arg-type]  # NumPy's and torch's scalars turn into floats
    except (TypeError, ValueError):
        return str(value)
    if math.isnan(number):
        return "NaN"
    if math.isinf(number):
        return "Infinity" if number > 0 else "-Infinity"
    return number
