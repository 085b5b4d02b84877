"""metrics.jsonl, line by line."""

from __future__ import annotations

import json
import math
from pathlib import Path

from rfflow.tracking.metrics_log import MetricsLog
from tests.tracking.story import Story, make_experiment


def test_every_log_is_a_line_of_strict_json(tmp_path: Path) -> None:
    """NaN and infinity too, which JSON does not know."""
    experiment = make_experiment(tmp_path, ("lr=1",))
    run = experiment.runs[0]
    story = Story(experiment, MetricsLog())
    story.begin()
    story.log(run, {"loss": 2.0, "grad_norm": math.inf}, step=1)
    story.log(run, {"loss": math.nan, "epoch": 1}, step=2)
    story.log(run, {"eval_loss": 1.5}, step=3)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    lines = [json.loads(line, parse_constant=refuse) for line in run.paths.metrics.read_text().splitlines()]
    assert [line["metrics"] for line in lines] == [
        {"loss": 2.0, "grad_norm": "Infinity"},
        {"loss": "NaN", "epoch": 1},
        {"eval_loss": 1.5},
    ]
    assert [(line["step"], line["chunk"]) for line in lines] == [(1, 1), (2, 1), (3, 2)]
    assert math.isnan(float(lines[1]["metrics"]["loss"])) and lines[0]["time"] > 1e9


def test_runs_do_not_mix(tmp_path: Path) -> None:
    """Each has its own file; one that logs nothing has none."""
    experiment = make_experiment(tmp_path, ("lr=1",), ("lr=2",), ("lr=3",))
    story = Story(experiment, MetricsLog())
    story.begin()
    for run in experiment.runs[:2]:
        story.chunk(run, {"loss": float(run.number)})
    found = [run.paths.metrics.exists() and json.loads(run.paths.metrics.read_text()) for run in experiment.runs]
    assert [line and line["metrics"] for line in found] == [{"loss": 0.0}, {"loss": 1.0}, False]
