"""Trackio, in its files on this machine, with its own package."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from rfflow.errors import ConfigError
from rfflow.loggers.hparams import STATES
from rfflow.runs.experiment import Experiment
from rfflow.runs.run import RunState
from rfflow.tracking.timeline import Timeline
from tests.loggers.test_trackers import tell_and_be_killed, tell_and_resume
from tests.tracking.story import Story, make_experiment

os.environ.setdefault("TRACKIO_DIR", tempfile.mkdtemp(prefix="trackio-"))  # Trackio reads it once, when it is imported
trackio = pytest.importorskip("trackio", reason="NOT TESTED: Trackio, which is not installed")


def logger(**kwargs: Any) -> Any:
    from rfflow.loggers.trackio import TrackioLogger

    return TrackioLogger(patience=120.0, **kwargs)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a project that nobody has."""
    for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_WRITE_TOKEN", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return f"sft-{tmp_path.parent.name}-{tmp_path.name}".replace("_", "-")


def read(project: str) -> dict[str, dict[str, Any]]:
    """Return every run by our number: its name, configuration, metrics, alerts."""
    from trackio.sqlite_storage import SQLiteStorage

    found = {}
    for record in SQLiteStorage.get_run_records(project):
        at = {"project": project, "run_id": record["id"]}
        config = SQLiteStorage.get_run_config(project, run=record["name"], run_id=record["id"]) or {}
        points: dict[str, list[tuple[int, Any]]] = {}
        for row in SQLiteStorage.get_logs(project, run=record["name"], run_id=record["id"]):
            for key, value in row.items():
                points.setdefault(key, []).append((row["step"], value))
        alerts = [f"{alert['title']}: {alert['text']}" for alert in SQLiteStorage.get_alerts(**at)]
        number = str(config.get("rfflow.run", "all"))
        assert number not in found, "each once, though another process went on"
        found[number] = {"name": record["name"], "config": config, "points": points, "alerts": sorted(alerts)}
    return found


def test_trackio_has_a_run_for_each(experiment: Experiment, project: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In one group: settings, metrics by step and chunk, states, ops, files; gone on with after a crash."""
    tell_and_resume(experiment, lambda: logger(project=project, artifacts=["adapter", "timeline"]))
    runs = read(project)
    assert {*runs} == {"all", "0", "1", "2", "3", "4"}
    assert {run["config"].get("_Group") for run in runs.values()} == {"now"}
    assert runs["0"]["name"] == "0 lr=1e-3 now" and runs["all"]["name"] == "now"
    assert runs["0"]["config"]["trainer.args.learning_rate"] == 0.001
    assert runs["4"]["config"]["rfflow.parent"] == 0 and runs["4"]["config"]["rfflow.chunks_before"] == 1
    states = {name: run["points"]["rfflow.state"][-1][1] for name, run in runs.items() if name != "all"}
    assert states == {
        "0": STATES[RunState.COMPLETED],
        "1": STATES[RunState.RUNNING],
        "2": STATES[RunState.DELETED],
        "3": STATES[RunState.FAILED],
        "4": STATES[RunState.RUNNING],
    }
    assert "op: 010-op.yaml: run 1 is stopped" in runs["1"]["alerts"]
    assert "op: 010-op.yaml: run 2 is deleted" in runs["2"]["alerts"], "after its end, in the same run"
    assert runs["0"]["points"]["train/loss"] == [(2, 2.0), (4, 1.0)], "nothing twice"
    assert runs["0"]["points"]["by_chunk/train/loss"] == [(1, 2.0), (2, 1.0)]
    assert runs["4"]["points"]["by_chunk/train/loss"] == [(2, 0.5)], "behind its parent's chunk"
    assert "timeline" in runs["all"]["points"]
    assert capsys.readouterr().out == "", "the terminal is the experiment's"


def test_trackio_gets_what_a_killed_process_has_had_no_time_for(experiment: Experiment, project: str) -> None:
    tell_and_be_killed(experiment, lambda: logger(project=project))
    runs = read(project)
    for name in ("0", "1"):
        assert runs[name]["points"]["by_chunk/train/loss"] == [(1, 2.0), (2, 1.0)]
    assert runs["1"]["points"]["rfflow.state"][-1][1] == STATES[RunState.COMPLETED]


def test_trackio_keeps_adapters_and_the_timeline(experiment: Experiment, project: str) -> None:
    """As artifacts, to be had by their names."""
    from trackio.sqlite_storage import SQLiteStorage

    tell_and_resume(experiment, lambda: logger(project=project, artifacts=["adapter", "timeline"]))
    kept = {}
    for name in ("now-0-adapter", "now-timeline.json", "now-timeline.png"):
        manifest = SQLiteStorage.get_artifact_manifest(project, name, "latest")["manifest"]
        kept[name] = [entry["path"] for entry in manifest]
    assert kept == {
        "now-0-adapter": ["adapter_config.json"],
        "now-timeline.json": ["timeline.json"],
        "now-timeline.png": ["timeline.png"],
    }


def test_experiments_of_one_project_stay_apart(tmp_path: Path, project: str) -> None:
    """Though their runs have the same overrides: Trackio finds a run by its name."""
    for name in ("first", "second"):
        made = make_experiment(tmp_path / name, ("lr=1e-3",))
        tracker = logger(project=project)
        story = Story(made, Timeline(), tracker)
        story.begin()
        story.chunk(made.runs[0], {"loss": 1.0})
        tracker.finalize("failed")
    from trackio.sqlite_storage import SQLiteStorage

    assert sorted(run["name"] for run in SQLiteStorage.get_run_records(project)) == [
        "0 lr=1e-3 first",
        "0 lr=1e-3 second",
    ]


def test_what_a_user_begins_goes_on_as_it_was(experiment: Experiment, project: str) -> None:
    """It stays current, and Trackio prints for it."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        own = trackio.init(project=f"{project}-own", embed=False, auto_log_gpu=False, auto_log_cpu=False)
        tracker = logger(project=project)
        story = Story(experiment, Timeline(), tracker)
        story.begin()
        story.chunk(experiment.runs[0], {"loss": 1.0})
        tracker.finalize("failed")
        assert trackio.context_vars.current_run.get() is own
        trackio.finish()
    assert printed.getvalue().count("Created new run") == 1


def test_a_trackio_that_is_not_there_is_answered_before_training(nowhere: str, project: str) -> None:
    """Without the token that stands in its address."""
    with pytest.raises(ConfigError, match=rf"Trackio at {nowhere}/? does not answer.*trackio show") as said:
        logger(server_url=f"{nowhere}/?write_token=sesame")
    assert "sesame" not in str(said.value)


def test_a_trackio_without_a_token_is_answered_before_training(nowhere: str, project: str) -> None:
    """With the variable to set."""
    with pytest.raises(ConfigError, match=r"wants a token to write. Set TRACKIO_WRITE_TOKEN"):
        logger(server_url=nowhere)
