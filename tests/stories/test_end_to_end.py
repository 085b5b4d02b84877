"""The command line in a process of its own, and a person at another terminal who drops files or asks rfflow ctl."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rfflow.control import ctl

ROOT = Path(__file__).resolve().parents[2]


def test_runs_are_stopped_cloned_resumed_and_deleted_while_the_experiment_goes(
    tiny_model: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Flags in the middle, four runs, a file that lies there from the beginning, nonsense, and every op answered."""
    control, out = tmp_path / "control", tmp_path / "out"
    control.mkdir()
    (control / "010-stop.yaml").write_text("op: stop\nrun: [1, 2]\n")
    (control / "020-nonsense.yaml").write_text("op: [stop\n")
    command = [
        sys.executable,
        "-m",
        "rfflow",
        "+recipe=sft",
        "--multirun",
        "lr=1e-2,1e-3",
        "peft=lora_small,lora_large",
    ]
    command += [f"model.name={tiny_model}", "dataset=local", f"dataset.path={tiny_data}", "dataset.eval_size=0.1"]
    command += [f"control.dir={control}", f"hydra.sweep.dir={out}", "trainer.args.use_cpu=true"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        said = []
        for line in process.stdout:  # runs 0 and 3 end, and the engine waits for runs 1 and 2
            said.append(line)
            if "waiting" in line.lower():
                break

        def ask(*words: str) -> int:
            return ctl.main([*words, "--control", str(control), "--timeout", "300"])

        assert ask("clone", "0", "lr=5e-3", "--warm-start") == ctl.OK, "".join(said)
        assert ask("clone", "0", "lrr=5e-3") == ctl.FAILED
        assert ask("clone", "4", "peft.r=2") == ctl.OK  # one of a clone
        assert ask("resume", "1") == ctl.OK
        assert ask("stop", "3") == ctl.FAILED
        assert ask("delete", "2") == ctl.OK
        rest, _ = process.communicate(timeout=600)
    output = "".join(said) + rest
    assert process.returncode == 0, output
    told = capsys.readouterr()
    assert "Run 0 was cloned as run 4" in told.out and "it is completed" in told.err and "lrr" in told.err
    with open(out / "runs.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == [
        "completed",
        "completed",
        "deleted",
        "completed",
        "completed",
        "completed",
    ]
    assert [row["parent"] for row in rows] == ["", "", "", "", "0", "4"]
    assert (out / "runs" / "4" / ".hydra" / "overrides.yaml").is_file()
    assert "lr=5e-3" in yaml.safe_load((out / "runs" / "4" / ".hydra" / "overrides.yaml").read_text())
    assert {"lr=5e-3", "peft.r=2"} < set(yaml.safe_load((out / "runs" / "5" / ".hydra" / "overrides.yaml").read_text()))
    assert not (out / "runs" / "6").exists()
    entries = [json.loads(line) for line in (out / "ops.jsonl").read_text().splitlines()]
    assert [(entry["op"], entry["outcome"]) for entry in entries] == [
        ("stop", "applied"),
        ("stop", "applied"),
        ("unknown", "refused"),
        ("clone", "applied"),
        ("clone", "refused"),
        ("clone", "applied"),
        ("resume", "applied"),
        ("stop", "refused"),
        ("delete", "applied"),
    ]
    assert not [path for path in control.iterdir() if path.suffix == ".yaml" and path.name != "status.yaml"]
    assert len(list((control / "rejected").glob("*.error"))) == 3
    curves = {path.name.partition(" ")[0] for path in (out / "tb").iterdir() if path.is_dir()}
    assert "2" not in curves and "4" in curves


def test_a_run_that_fails_shows_in_the_exit_status(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    """The other finishes; the end names the run, the reason and where its trace is."""
    command = [sys.executable, "-m", "rfflow", "+recipe=sft", f"model.name={tiny_model}", "dataset=local", "--multirun"]
    command += [f"dataset.path={tiny_data}", f"hydra.sweep.dir={tmp_path}", "chunks=2", "trainer.args.use_cpu=true"]
    command += ["trainer.callbacks=[],[{_target_: tests.worker.training.test_exactness.FailAt, step: 5}]"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1
    assert "Run 1" in done.stderr and "the user's bug" in done.stderr and "runs/1/run.log" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    with open(tmp_path / "runs.csv") as file:
        assert [row["state"] for row in csv.DictReader(file)] == ["completed", "failed"]
    assert "test_exactness.py" in (tmp_path / "runs" / "1" / "run.log").read_text()
