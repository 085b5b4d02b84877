"""Trackio's own server, in a process of its own on loopback: it has what it is given, and may go."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rfflow.tracking.timeline import Timeline
from tests.loggers.served import free_port
from tests.loggers.test_trackio import logger
from tests.tracking.story import Story, make_experiment

SERVE = "import sys, threading, trackio; print(trackio.show(host='127.0.0.1', server_port=int(sys.argv[1]), \
open_browser=False, block_thread=False)[3], flush=True); threading.Event().wait()"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Its address with the token to write, and its process; what it keeps is in tmp_path/kept."""
    for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_WRITE_TOKEN", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    output = tmp_path / "server.txt"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(free_port())],
            env={**os.environ, "TRACKIO_DIR": str(tmp_path / "kept")},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        while not (found := re.search(r"^http://\S+write_token=\S+$", output.read_text(), re.MULTILINE)):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.1)
                raise RuntimeError(output.read_text())
        yield found[0], process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def kept(folder: Path) -> list[tuple[str, int, bytes]]:
    """Return what the server has of the project: run, step, values."""
    path = folder / "kept" / "far.db"
    with contextlib.suppress(sqlite3.OperationalError), contextlib.closing(sqlite3.connect(path)) as base:
        return list(base.execute("select run_name, step, metrics from metrics"))
    return []  # nothing yet


@pytest.mark.slow  # it starts Trackio's server, and waits for what is gone
def test_a_server_has_each_run_and_its_death_costs_a_warning(
    server: tuple[str, subprocess.Popen[bytes]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    address, process = server
    experiment = make_experiment(tmp_path / "outputs/sft/now", ("lr=1e-3",), ("lr=1e-4",))
    tracker: Any = logger(project="far", server_url=address)
    tracker._patience = 2.0
    story = Story(experiment, Timeline(), tracker)
    story.begin()
    for run in experiment.runs:
        story.chunk(run, {"loss": 2.0})
    deadline = time.monotonic() + 60
    while not {("0 lr=1e-3 now", 2), ("1 lr=1e-4 now", 2)} <= {
        (name, step) for name, step, values in kept(tmp_path) if b"train/loss" in values
    }:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "Trackio" not in caplog.text

    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    begun = time.monotonic()
    for run in experiment.runs:
        story.chunk(run, {"loss": 1.0})
        story.complete(run)
    story.end()
    assert time.monotonic() - begun < 10, "nothing waits for it"
    begun = time.monotonic()
    tracker.finalize("success")
    assert time.monotonic() - begun < 10
    assert "Trackio has not taken everything within 2.0 s" in caplog.text and "Trackio has missed" in caplog.text
    from trackio.sqlite_storage import SQLiteStorage

    logs = SQLiteStorage.get_logs("far", run="0 lr=1e-3 now")
    assert 1.0 in [row.get("train/loss") for row in logs], "it is kept on this machine"
