"""MLflow: an MLflow run for each run, nested in one for the experiment."""

from __future__ import annotations

import logging
import math
import os
import re
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rfflow.confidential import without_secrets
from rfflow.errors import ConfigError
from rfflow.loggers.tracker import Group, TrackedRun, Tracker
from rfflow.runs.run import Run

_STATUS = {"completed": "FINISHED", "failed": "FAILED", "deleted": "KILLED"}
_NAME = re.compile(r"[^\w.\-/: ]")
"""What MLflow takes in no name."""
_LONGEST = 6000
"""Characters of a parameter's value."""
_AT_ONCE = 100
"""Parameters in one call."""
_PATIENCE = 5.0
"""Seconds, at most, that the first run of all waits for MLflow's; after that nobody does."""


class MLflowLogger(Tracker):
    """Give everything to MLflow.

    Args:
        tracking_uri: where; ``None`` is what MLflow itself would take: ``MLFLOW_TRACKING_URI``, or a local store.
        experiment: MLflow's experiment; ``None`` is the experiment's name (``name=...``).
        artifacts: which files to give it, of ``adapter`` and ``timeline``.
        patience: seconds, at most, that the end waits for MLflow.

    Raises:
        ConfigError: if mlflow is not installed, or the server does not answer, or takes no credentials of ours.
    """

    kind = "MLflow"

    def __init__(
        self,
        tracking_uri: str | None = None,
        experiment: str | None = None,
        artifacts: Collection[str] = ("timeline",),
        patience: float = 30.0,
    ):
        super().__init__(artifacts, patience)
        try:
            from mlflow import MlflowClient
        except ImportError as error:
            raise ConfigError(
                f"mlflow cannot be imported ({error}). Install it: pip install 'rfflow[mlflow]'"
            ) from error
        self._named = experiment
        with _impatient():
            self._client = MlflowClient(tracking_uri)
            try:
                self._client.search_experiments(max_results=1)
            except Exception as error:  # requests', SQLAlchemy's, MLflow's own
                raise ConfigError(_unreachable(self._client.tracking_uri, error)) from error
        self._place = ""
        """MLflow's experiment."""
        self._parent = ""
        """The MLflow run of all."""
        self._ids: dict[int, str] = {}
        self._ops: dict[int, list[str]] = {}
        self._reached: dict[tuple[int, str], int] = {}
        """The last step of each metric that an earlier process has logged; MLflow would keep both."""
        self._begun = threading.Condition()
        self._waits = True
        """Whether a run that is about to train waits for its own to be begun."""

    def on_chunk_start(self, run: Run) -> None:
        """Let what calls MLflow by itself while a run trains find the run's own; MLflow goes on with the one named."""
        if "MLFLOW_RUN_ID" in run.environ:
            return
        self._view(run)
        with self._begun:
            if self._waits:
                self._waits = self._begun.wait_for(lambda: run.number in self._ids, _PATIENCE)
            if (run_id := self._ids.get(run.number)) is not None:
                run.environ = {"MLFLOW_RUN_ID": run_id, "MLFLOW_TRACKING_URI": self._client.tracking_uri}

    def begin(self, group: Group, run: TrackedRun) -> None:
        """Begin a run, or go on with the one that an earlier process has begun."""
        if not self._parent:
            self._open(group)
        tags = {"rfflow.experiment": group.id, "rfflow.run": str(run.number), "mlflow.parentRunId": self._parent}
        if (found := self._find(group, run.number)) is not None:
            self._ids[run.number] = found.info.run_id
            self._ops[run.number] = found.data.tags.get("mlflow.note.content", "").splitlines()
            for key in found.data.metrics:
                history = self._client.get_metric_history(found.info.run_id, key)
                self._reached[run.number, key] = max(point.step for point in history)
        else:
            made = self._client.create_run(self._place, run_name=run.name, tags=tags)
            self._ids[run.number] = made.info.run_id
        with self._begun:
            self._begun.notify_all()
        if found is None:
            self._log_params(run)
        self.tell(run, None)

    def log(self, run: TrackedRun, metrics: Mapping[str, float], step: int, chunk: int | None) -> None:
        """Log metrics at an optimizer step, or at a chunk where one is given."""
        from mlflow.entities import Metric

        now, at = int(time.time() * 1000), step if chunk is None else chunk
        points = [
            Metric(key, value, now, at)
            for name, value in metrics.items()
            if self._reached.get((run.number, key := _NAME.sub("_", name)), -1) < at
        ]
        if points:
            self._client.log_batch(self._ids[run.number], metrics=points)

    def tell(self, run: TrackedRun, op: str | None) -> None:
        """Show a run's state and parent as tags, and its ops as its description."""
        from mlflow.entities import RunTag

        tags = {"rfflow.state": run.state, "rfflow.chunk": str(run.chunk)}
        if run.parent is not None:
            tags["rfflow.parent"] = str(run.parent)
            tags["rfflow.chunks_before"] = str(run.chunks_before)
        if op is not None:
            self._ops.setdefault(run.number, []).append(f"- {op}")
            tags["mlflow.note.content"] = "\n".join(self._ops[run.number])[-_LONGEST:]
        self._client.log_batch(self._ids[run.number], tags=[RunTag(*tag) for tag in tags.items()])
        if run.state not in _STATUS:
            self._client.update_run(self._ids[run.number], status="RUNNING")

    def keep(self, group: Group, run: TrackedRun | None, path: Path, name: str) -> None:
        """Keep a file or folder as artifacts."""
        run_id = self._parent if run is None else self._ids[run.number]
        if path.is_dir():
            self._client.log_artifacts(run_id, str(path), name)
        else:
            self._client.log_artifact(run_id, str(path))

    def end(self, group: Group, run: TrackedRun) -> None:
        """Set a run's status; one that was deleted is KILLED, and stays to be seen."""
        self._terminate(self._ids[run.number], _STATUS.get(run.state, "KILLED"))

    def has_ended(self, group: Group, run: int) -> bool:
        """Whether a run is there that does not run any more."""
        if not self._parent:
            self._open(group)
        found = self._find(group, run)
        return found is not None and found.info.status != "RUNNING"

    def close(self, group: Group, status: str) -> None:
        """Set the status of the run of all."""
        if self._parent:
            self._terminate(self._parent, "FINISHED" if status == "success" else "KILLED")
        self._parent = ""

    def _terminate(self, run_id: str, status: str) -> None:
        """Set a run's last status.

        The client's own ``set_terminated`` also shuts down the process's one queue of what is logged asynchronously: a
        trainer that MLflow's autologging watches would fail if it logged in that moment.
        """
        from mlflow.entities import RunStatus

        store = self._client._tracking_client.store
        store.update_run_info(run_id, RunStatus.from_string(status), int(time.time() * 1000), None)

    def _open(self, group: Group) -> None:
        name = self._named or group.name
        found = self._client.get_experiment_by_name(name)
        self._place = found.experiment_id if found is not None else self._client.create_experiment(name)
        if (going := self._find(group, None)) is not None:
            self._parent = going.info.run_id
            self._client.update_run(self._parent, status="RUNNING")
        else:
            tags = {"rfflow.experiment": group.id, "rfflow.run": "all"}
            self._parent = self._client.create_run(self._place, run_name=group.directory, tags=tags).info.run_id

    def _find(self, group: Group, number: int | None) -> Any:
        wanted = "all" if number is None else str(number)
        query = f"tags.`rfflow.experiment` = '{group.id}' and tags.`rfflow.run` = '{wanted}'"
        return next(iter(self._client.search_runs([self._place], query, max_results=1)), None)

    def _log_params(self, run: TrackedRun) -> None:
        from mlflow.entities import Param

        params = [
            Param(_NAME.sub("_", key)[:250], str(value)[:_LONGEST])
            for key, value in run.settings.items()
            if not (isinstance(value, float) and math.isnan(value))
        ]
        for start in range(0, len(params), _AT_ONCE):
            self._client.log_batch(self._ids[run.number], params=params[start : start + _AT_ONCE])


@contextmanager
def _impatient() -> Iterator[None]:
    """Let MLflow answer soon whether a server is there; while training it may try again and again."""
    wanted = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    alembic = logging.getLogger("alembic")
    level = alembic.level
    alembic.setLevel(logging.WARNING)  # it tells of every table that a new store gets
    try:
        yield
    finally:
        alembic.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _unreachable(uri: str, error: Exception) -> str:
    text = " ".join(without_secrets(str(error)).split())
    uri = re.sub(r"//[^/@]*@", "//", uri)
    if re.search(r"\b40[13]\b|[Uu]nauthori[sz]ed|[Ff]orbidden", text):
        return (
            f"MLflow at {uri} takes no credentials of yours: {text[:300]}. Set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN."
        )
    return (
        f"MLflow at {uri} does not answer: {text[:300]}. Start it (mlflow server --port 5000), or name another: "
        "MLFLOW_TRACKING_URI=http://..., loggers.mlflow.tracking_uri=...; without either a local store is used."
    )
