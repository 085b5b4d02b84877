"""status.yaml and status.json."""

import json
import math
import os
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
import yaml

from rfflow.control.status import RunStatus, Status, StatusFile, read_status


def test_the_status_is_plain_yaml_that_reads_back(tmp_path):
    runs = (
        RunStatus(
            0, "stopped", ("lr=1e-3", "name='ü: x'"), 1, 4, 10, 40, {"loss": np.float32(0.5), "eval_loss": math.nan}
        ),
        RunStatus(1, "running", parent=0, slot=1, since="2026-01-01T00:00:00.000+00:00"),
    )
    StatusFile(tmp_path).write(Status("outputs/sft/now", runs, waiting=True, slots=2))
    document = yaml.safe_load((tmp_path / "status.yaml").read_text())
    assert document["experiment"] == "outputs/sft/now"
    assert document["pid"] == os.getpid() and document["waiting"] is True
    first, second = document["runs"]
    assert first["overrides"] == ["lr=1e-3", "name='ü: x'"]
    assert first["metrics"]["loss"] == 0.5 and math.isnan(first["metrics"]["eval_loss"])
    assert (second["number"], second["state"], second["parent"], second["chunks"]) == (1, "running", 0, None)
    assert sorted(os.listdir(tmp_path)) == ["status.json", "status.yaml"]
    # The same for programs, in JSON as its standard has it.
    strict = json.loads((tmp_path / "status.json").read_text(), parse_constant=lambda word: pytest.fail(word))
    assert strict["runs"][0].pop("metrics") == {"loss": 0.5, "eval_loss": "nan"}
    del first["metrics"]
    assert strict == document
    assert read_status(tmp_path)["runs"][0]["step"] == 10


def test_what_changes_of_a_run_is_in_the_files_and_what_does_not_is_as_it_was(tmp_path):
    """They are put together of texts that are kept for each run: as if each had been written whole."""
    metrics = {"loss": 0.5}
    first = RunStatus(0, "running", ("lr=1e-3", "name='ü: x'"), 1, 4, metrics=metrics)
    file, other = StatusFile(tmp_path), RunStatus(1, "queued")
    second = replace(first, chunk=2, rank=2), replace(other, rank=1)
    for runs in ((first, other), second, (other,), (), (replace(other, number=0), other)):
        metrics["loss"] += 1  # the mapping of the run itself, which goes on
        status = Status("outputs/sft/now", runs, pid=3, updated="today")
        file.write(status)
        document = {key: getattr(status, key) for key in ("experiment", "pid", "updated", "waiting", "slots")}
        document["runs"] = [{**asdict(run), "overrides": list(run.overrides)} for run in runs]
        text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120)
        assert (tmp_path / "status.yaml").read_text() == text
        assert json.loads((tmp_path / "status.json").read_text()) == document


def test_a_failing_write_is_said_once_and_stops_nothing(tmp_path, caplog):
    file = StatusFile(tmp_path / "control")
    file.write(Status("x"))
    file.write(Status("x"))
    assert caplog.text.count("Cannot write") == 1
    (tmp_path / "control").mkdir()
    file.write(Status("x"))
    shutil.rmtree(tmp_path / "control")
    file.write(Status("x"))
    assert caplog.text.count("Cannot write") == 2


def test_no_status_and_a_broken_one_read_as_none(tmp_path):
    assert read_status(tmp_path) is None
    (tmp_path / "status.yaml").write_text("[")
    assert read_status(tmp_path) is None
    (tmp_path / "status.yaml").write_text("3")
    assert read_status(tmp_path) is None
