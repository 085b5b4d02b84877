"""MLflow's own server, in a process of its own: gone on with after a crash, refusing, and gone."""

from __future__ import annotations

import importlib.util
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rfflow.errors import ConfigError
from rfflow.runs.experiment import Experiment
from rfflow.tracking.timeline import Timeline
from tests.loggers.served import Server, refusing
from tests.loggers.test_trackers import check_mlflow, mlflow_logger, tell_and_resume
from tests.tracking.story import FOUR, Story, make_experiment

MISSING = [name for name in ("mlflow", "flask", "flask_cors", "graphene", "huey") if not importlib.util.find_spec(name)]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"NOT TESTED: MLflow's server wants {', '.join(MISSING)}")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for all of this module's tests."""
    started = Server(tmp_path_factory.mktemp("mlflow"))
    try:
        started.start()
        yield started
    finally:
        started.stop()


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    """Make four runs."""
    return make_experiment(tmp_path / "outputs/sft/now", *FOUR)


@pytest.mark.slow
def test_a_server_has_a_run_for_each(server: Server, experiment: Experiment) -> None:
    """Cloned, stopped, deleted, gone on with after a crash in the same runs; files are kept by the server."""
    tell_and_resume(experiment, lambda: mlflow_logger(artifacts=["adapter", "timeline"], tracking_uri=server.uri))
    check_mlflow(experiment, server.uri)

    from mlflow import MlflowClient

    client = MlflowClient(server.uri)
    found = client.get_experiment_by_name("sft")
    assert found.artifact_location.startswith("mlflow-artifacts:"), "by way of the server"
    [run] = client.search_runs([found.experiment_id], "tags.`rfflow.run` = '0'")
    assert [file.path for file in client.list_artifacts(run.info.run_id, "adapter")] == ["adapter/adapter_config.json"]


@pytest.mark.parametrize("status", [401, 403])
def test_a_server_that_refuses_is_answered_in_a_sentence(status: int) -> None:
    """Before training: what it said, and where credentials go; what stands in the address is not repeated."""
    with refusing(status) as uri, pytest.raises(ConfigError) as said:
        mlflow_logger(tracking_uri=uri.replace("//", "//me:hunter22@"))
    text = str(said.value)
    assert "takes no credentials of yours" in text and "MLFLOW_TRACKING_PASSWORD" in text
    assert str(status) in text and "hunter22" not in text and "\n" not in text


def test_what_is_no_mlflow_is_answered_too() -> None:
    """Another program may listen there."""
    with refusing(404) as uri, pytest.raises(ConfigError, match="404"):
        mlflow_logger(tracking_uri=uri)


@pytest.mark.slow
def test_a_server_that_dies_midway_costs_a_warning(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All else goes on, and the end comes soon; the last test here, as the server is gone then."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(logging.getLogger("mlflow"), "disabled", True)
    experiment = make_experiment(tmp_path / "outputs/sft/later", ("lr=1e-3",), ("lr=1e-4",))
    logger: Any = mlflow_logger(tracking_uri=server.uri, patience=10.0)
    story = Story(experiment, Timeline(), logger)
    story.begin()
    story.chunk(experiment.runs[0], {"loss": 2.0})
    has_told = threading.Event()
    logger._ask(has_told.set)
    assert has_told.wait(120) and "MLflow" not in caplog.text

    server.stop()
    for _ in range(3):
        for run in experiment.runs:
            story.chunk(run, {"loss": 1.0})
    story.complete(experiment.runs[1])
    story.end()
    logger.finalize("success")
    assert caplog.text.count("MLflow fails, and all else goes on") == 1
    assert "MLflow has missed" in caplog.text and "nothing more is given to it" in caplog.text
