"""Lines that were cut from a metrics.jsonl while nobody trained."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from rfflow.config.spec import CheckpointSpec
from rfflow.engine import restoring
from rfflow.runs.paths import ExperimentPaths
from rfflow.runs.run import Run
from rfflow.tracking.metrics_log import MetricsLog
from tests.engine.test_restoring import experiment, outcome, play
from tests.support.toy import Dies, toy_engine, toy_spec


def lines_of(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.paths.metrics.read_text().splitlines()]


def killed(root: Path, *, knows: bool) -> ExperimentPaths:
    """Leave two runs after two chunks each; their checkpoints know what the trainer has logged, or do not."""
    engine = toy_engine(
        root, [toy_spec(chunks=4, starts=True)] * 2, [MetricsLog(), Dies(4)], checkpoint=CheckpointSpec()
    )
    with pytest.raises(Exception, match="killed"):
        engine.run()
    engine.close()
    for run in engine.experiment.runs:
        history = [{"step": line["step"], **line["metrics"]} for line in lines_of(run)]
        newest = sorted(run.paths.checkpoints.glob("step-*"))[-1]
        if knows:
            (newest / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    return engine.experiment.paths


def cut(paths: ExperimentPaths, *numbers: int) -> list[str]:
    """Take lines out of the first run's log; return those that it had."""
    file = paths.run(0).metrics
    lines = file.read_text().splitlines()
    file.write_text("".join(f"{line}\n" for number, line in enumerate(lines) if number not in numbers))
    return lines


def timeless(lines: list[str]) -> list[dict[str, Any]]:
    return [{k: v for k, v in json.loads(line).items() if k not in ("time", "restored")} for line in lines]


@pytest.mark.parametrize("numbers", [(0,), (1,), (0, 2), (0, 1, 2)], ids=str)
def test_lines_that_were_cut_are_put_back_and_said(
    tmp_path: Path, numbers: tuple[int, ...], caplog: pytest.LogCaptureFixture
) -> None:
    paths = killed(tmp_path / "x", knows=True)
    before = cut(paths, *numbers)
    with caplog.at_level(logging.WARNING):
        play(tmp_path / "x", plan={})
    (said,) = [line for line in caplog.messages if "missing" in line]
    assert f"{len(numbers)} of the 3 lines that run 0 had logged are missing" in said and "put back" in said
    after = paths.run(0).metrics.read_text().splitlines()
    assert timeless(after[:3]) == timeless(before)
    assert [number for number, line in enumerate(after) if "restored" in line] == [*numbers]
    assert len(outcome(tmp_path / "x")["logs"][0]) == len(outcome(tmp_path / "x")["logs"][1])


def test_what_cannot_be_put_back_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A checkpoint without the trainer's history: the ends of two chunks are known, and nothing between them."""
    paths = killed(tmp_path / "x", knows=False)
    cut(paths, 0, 1, 2)
    with caplog.at_level(logging.WARNING):
        play(tmp_path / "x", plan={})
    (said,) = [line for line in caplog.messages if "missing" in line]
    assert "3 of the 3 lines" in said and "2 of them could be put back" in said and said.endswith(", no more.")


def test_a_log_that_is_gone_altogether_and_one_of_a_run_that_has_ended(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = killed(tmp_path / "x", knows=True)
    paths.run(0).metrics.unlink()
    play(tmp_path / "x", plan={})
    assert "3 of the 3 lines that run 0 had logged are missing" in caplog.text
    assert "run 1 had" not in caplog.text
    cut(paths, 4)
    caplog.clear()
    engine = experiment(tmp_path / "x", {})
    engine.close()
    assert "1 of the 5 lines that run 0 had logged are missing" in caplog.text


def test_lines_that_are_all_there_are_left_alone(tmp_path: Path) -> None:
    paths = killed(tmp_path / "x", knows=True)
    before = paths.run(0).metrics.stat().st_ino
    lines = restoring.rewind_log(paths.run(0).metrics, 6)
    assert lines is not None and len(lines) == 3 and paths.run(0).metrics.stat().st_ino == before
