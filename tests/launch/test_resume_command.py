"""``rfflow resume=...``: the command line that started an experiment, and everything that cannot be gone on with."""

from __future__ import annotations

import json
import os
import pickle
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from rfflow.checkpointing.experiment_file import RunRecord, SavedExperiment, write
from rfflow.checkpointing.starting import Command
from rfflow.control.belonging import Marks
from rfflow.engine import restoring
from rfflow.errors import ConfigError
from rfflow.launch import resume, trust
from rfflow.runs.chunks import ChunkPlan
from rfflow.runs.paths import ExperimentPaths
from rfflow.runs.run import RunState
from tests.support.tiny import make_data, make_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _forgets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(resume, "_requested", None)
    monkeypatch.chdir(tmp_path)
    yield


def started(
    root: Path,
    *states: RunState,
    is_finished: bool = False,
    multirun: bool = True,
    program: tuple[str, ...] | None = ("-m", "rfflow"),
    command: Command | None = None,
) -> Path:
    """Leave the files of an experiment that has such runs; without a command, those of the version before."""
    root.mkdir(parents=True)
    runs = tuple(
        RunRecord(
            number, state, (f"lr={number}",), ("+recipe=sft", f"lr={number}"), f"runs/{number}", plan=ChunkPlan((1,), 1)
        )
        for number, state in enumerate(states)
    )
    state = SavedExperiment("sft", 0.0, runs, is_finished=is_finished, program=program, command=command)
    write(ExperimentPaths(root).state, state, {}, is_first=True)
    hydra = {
        "runtime": {
            "cwd": str(root.parent),
            "config_sources": [
                {"path": "/somewhere/conf", "provider": "main"},
                {"path": "/mine", "provider": "command-line"},
            ],
        },
        "job": {"config_name": "config"},
        "overrides": {
            "hydra": ["hydra.mode=MULTIRUN", "hydra.sweep.dir=elsewhere", "hydra/launcher=rfflow"],
            "task": ["+recipe=sft", "lr=0,1"] if command is None else ["+recipe=dpo"],
        },
    }
    file = root / "multirun.yaml" if multirun else root / ".hydra" / "hydra.yaml"
    file.parent.mkdir(exist_ok=True)
    OmegaConf.save({"hydra": hydra}, file)
    return root


def test_the_command_is_the_one_it_was_started_with(tmp_path: Path) -> None:
    """From wherever it is typed: sweep, overrides, launcher, --config-dir and the directory of then."""
    root = started(tmp_path / "outputs" / "it's", RunState.RUNNING)
    os.chdir("/")
    arguments = resume.command([f"resume={root}", "control.idle_timeout=1"])
    assert Path.cwd() == root.parent
    assert arguments == [
        "--multirun",
        "--config-name",
        "config",
        "--config-dir",
        "/mine",
        "hydra/launcher=rfflow",
        "hydra.sweep.dir='it\\'s'",
        "+recipe=sft",
        "lr=0,1",
        "control.idle_timeout=1",
    ]
    state = resume.state_of(root)
    assert state is not None and state.runs[0].state is RunState.RUNNING


def test_a_single_run_goes_on_as_one(tmp_path: Path) -> None:
    root = started(tmp_path / "x", RunState.RUNNING, multirun=False)
    arguments = resume.command([f"resume={root}"])
    assert arguments is not None and "--multirun" not in arguments and "hydra.run.dir='x'" in arguments


def test_a_finished_experiment_is_opened_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = started(tmp_path / "x", RunState.COMPLETED, RunState.FAILED, is_finished=True)
    assert "lr=0,1" in resume.command([f"resume={root}"])
    assert "is finished: 1 completed, 1 failed. It is opened again for ops." in capsys.readouterr().out


def test_one_with_a_stopped_run_is_not_finished(tmp_path: Path) -> None:
    root = started(tmp_path / "x", RunState.COMPLETED, RunState.STOPPED, is_finished=True)
    assert resume.command([f"resume={root}"]) is not None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["resume=outputs/sfd"], r"no such directory\. Did you mean resume=outputs/sft"),
        (["resume=outputs"], r"is not an experiment. The newest one in it: resume=outputs/sft"),
        (["resume=empty"], r"has no experiment\.json"),
        (["resume=search"], r"trains by itself.*run the program again with hydra\.sweep\.dir=search"),
        (["resume=outputs/sft", "lr=3"], r"lr=3 cannot be given with resume=.*Allowed: control\."),
    ],
)
def test_what_cannot_be_gone_on_with(tmp_path: Path, arguments: list[str], said: str) -> None:
    started(tmp_path / "outputs" / "sft", RunState.RUNNING)
    (tmp_path / "empty").mkdir()
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "study.journal").write_text("")
    with pytest.raises(ConfigError, match=said):
        resume.command(arguments)


FILES = ["", "experiment.json", "multirun.yaml", ".hydra", ".hydra/hydra.yaml"]


@pytest.fixture
def strange(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Make a file another user's, as far as anybody can see."""
    others: set[Path] = set()

    def seen(real: Callable[..., os.stat_result]) -> Callable[..., os.stat_result]:
        def look(path: Path, **kwargs: Any) -> os.stat_result:
            status = real(path, **kwargs)
            values = list(status)
            values[stat.ST_UID] += path in others
            return os.stat_result(values)

        return look

    monkeypatch.setattr(Path, "lstat", seen(Path.lstat))
    monkeypatch.setattr(Path, "stat", seen(Path.stat))
    return others.add


@pytest.mark.parametrize("name", FILES)
def test_an_experiment_of_another_user_is_not_gone_on_with_unless_that_is_said(
    tmp_path: Path, strange: Callable[[Path], None], name: str
) -> None:
    root = started(tmp_path / "x", RunState.RUNNING)
    started(tmp_path / "other", RunState.RUNNING, multirun=False)
    (tmp_path / "other" / ".hydra").rename(root / ".hydra")
    strange(root / name)
    with pytest.raises(ConfigError, match=r"resume=x belongs to another user .* add resume_foreign=true"):
        resume.command(["resume=x"])
    with pytest.raises(ConfigError, match="belongs to another user"):
        resume.command(["resume=x", "resume_foreign=false"])
    with pytest.raises(ConfigError, match=r"resume_foreign is 'ja'. Allowed: true, false"):
        resume.command(["resume=x", "resume_foreign=ja"])
    arguments = resume.command(["resume=x", "resume_foreign=true"])
    assert arguments is not None and not any("foreign" in argument for argument in arguments)


def test_a_link_to_the_state_of_another_user_is_his(tmp_path: Path, strange: Callable[[Path], None]) -> None:
    root = started(tmp_path / "x", RunState.RUNNING)
    (root / "experiment.json").rename(tmp_path / "his.json")
    (root / "experiment.json").symlink_to(tmp_path / "his.json")
    trust.check_ours(root)
    strange(tmp_path / "his.json")
    strange(root / "experiment.json")  # what following it says
    with pytest.raises(ConfigError, match="belongs to another user"):
        trust.check_ours(root)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_that_is_really_anothers(tmp_path: Path) -> None:
    root = started(tmp_path / "x", RunState.RUNNING)
    os.chown(root / "experiment.json", 12345, -1)
    with pytest.raises(ConfigError, match=r"belongs to another user \(12345; you are"):
        resume.command(["resume=x"])


@pytest.mark.parametrize(
    ("mode", "has_others", "is_open"), [(0o666, False, True), (0o664, True, True), (0o664, False, False)]
)
def test_a_state_that_others_may_write_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, has_others: bool, is_open: bool
) -> None:
    """A group of which one is the only member is nobody else: many systems let it write to all that one makes."""
    monkeypatch.setattr("rfflow.control.belonging._has_others", lambda _: has_others)
    root = started(tmp_path / "x", RunState.RUNNING)
    (root / "experiment.json").chmod(mode)
    if not is_open:
        assert resume.command(["resume=x"])
        return
    with pytest.raises(ConfigError, match=rf"mode is {mode:o}.*chmod go-w x/experiment.json, or add resume_foreign"):
        resume.command(["resume=x"])
    assert resume.command(["resume=x", "resume_foreign=true"])


def test_where_a_mount_keeps_neither_owners_nor_modes_nothing_can_be_told_by_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = started(tmp_path / "x", RunState.RUNNING)
    (root / "experiment.json").chmod(0o777)
    monkeypatch.setattr("rfflow.control.belonging.marks_in", lambda _: Marks(root.stat().st_uid, keeps_modes=False))
    monkeypatch.setattr(os, "geteuid", lambda: root.stat().st_uid + 1)
    trust.check_ours(root)


def test_a_new_experiment_does_not_write_over_another(tmp_path: Path) -> None:
    root = started(tmp_path / "x", RunState.COMPLETED, is_finished=True)
    with pytest.raises(ConfigError, match=r"x holds an experiment already\. Go on with it: python -m rfflow resume=x"):
        resume.state_of(root)
    assert resume.state_of(tmp_path / "y") is None


def test_lines_of_later_steps_are_taken_back(tmp_path: Path) -> None:
    """And a line that a crash has torn."""
    log = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step}) for step in (1, 2, 3)]
    log.write_text("\n".join([*lines, '{"step": ']))
    restoring.rewind_log(log, 2)
    assert log.read_text().splitlines() == lines[:2]
    restoring.rewind_log(tmp_path / "none.jsonl", 2)


def test_a_run_that_begins_anew_keeps_nothing_of_step_0(tmp_path: Path) -> None:
    """It evaluates the untrained model once more."""
    log = tmp_path / "metrics.jsonl"
    log.write_text("".join(json.dumps({"step": step}) + "\n" for step in (0, 1)))
    assert restoring.rewind_log(log, 0) == []
    assert log.read_text() == ""


def test_a_program_of_ones_own_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Python was told to run it, in the directory of then; what it is to go on with stands in its environment."""
    became: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _, arguments: became.append(arguments[1:]))
    monkeypatch.setenv(resume.REQUEST, "")
    (tmp_path / "app.py").write_text("")
    for program in ((str(tmp_path / "app.py"),), ("-m", "my.app")):
        root = started(tmp_path / program[-1].replace("/", "-"), RunState.RUNNING, program=program)
        arguments = resume.command([f"resume={root}", "rfflow.control.idle_timeout=1"])
        assert became.pop() == [*program, *(arguments or ())]
        assert f"hydra.sweep.dir='{root.name}'" in (arguments or ()) and "lr=0,1" in (arguments or ())
        monkeypatch.setattr(resume, "_requested", None)
        assert resume.state_of(root) is not None  # what that program will ask
        monkeypatch.delenv(resume.REQUEST)
        with pytest.raises(ConfigError, match="holds an experiment already"):
            resume.state_of(root)


@pytest.mark.parametrize(
    ("program", "said"),
    [((), "started from Python, with a function of its own"), (("gone.py",), r"gone\.py, which is not there any more")],
)
def test_a_program_that_cannot_be_started_again_is_said(tmp_path: Path, program: tuple[str, ...], said: str) -> None:
    root = started(tmp_path / "x", RunState.RUNNING, program=program)
    with pytest.raises(ConfigError, match=said):
        resume.command([f"resume={root}"])
    with pytest.raises(ConfigError, match=r"control\.idle_timeout=1 cannot be given.*Allowed: rfflow\.control\."):
        resume.command([f"resume={root}", "control.idle_timeout=1"])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_the_command_itself(tmp_path: Path, number: signal.Signals) -> None:
    """As people type it, with a clone and a stopped run: ended by a signal, gone on with, and the same adapters."""
    make_model(tmp_path / "model")
    make_data(tmp_path / "sums.jsonl")
    op = 'op: clone\nrun: 0\noverrides: ["lr=2e-3,3e-3", "peft.r=8"]\n---\nop: stop\nrun: 1\n'
    adapters = {}
    for name in ("whole", "broken"):
        root = tmp_path / name
        (root / "control").mkdir(parents=True)
        (root / "control" / "001.yaml").write_text(op)
        os.utime(root / "control" / "001.yaml", (1, 1))
        line = (
            f"+recipe=sft model=hub model.name={tmp_path}/model dataset=local dataset.path={tmp_path}/sums.jsonl "
            f"trainer.args.max_length=64 control.idle_timeout=0 --multirun lr=1e-3,1e-4 hydra.sweep.dir={root} "
            "+hydra.callbacks.pickle._target_=hydra.experimental.callbacks.PickleJobInfoCallback"
        )
        process = subprocess.Popen(
            [sys.executable, "-m", "rfflow", *line.split()], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert process.stdout is not None
        if name == "broken":
            chunks = 0
            for printed in process.stdout:
                chunks += printed.startswith(b"chunk")
                if chunks == 5:
                    process.send_signal(number)
                    break
        said = process.stdout.read().decode()
        status = process.wait()
        if name == "broken":
            assert status == (-number if number is signal.SIGKILL else 128 + number), said
            assert "Traceback" not in said
            if number is not signal.SIGKILL:
                assert f"rfflow resume={root}" in said
            again = [sys.executable, "-m", "rfflow", f"resume={root}"]
            done = subprocess.run(again, cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
        else:
            assert status == 0, said
        adapters[name] = {
            run: (root / f"runs/{run}/checkpoints/final/adapter_model.safetensors").read_bytes() for run in (0, 2, 3)
        }
        # Hydra's callbacks, too, end every job in its own directory.
        ended = [pickle.loads((root / f"runs/{run}/.hydra/job_return.pickle").read_bytes()) for run in range(4)]
        lrs = [float(text[3:]) for job in ended for text in job.overrides if text.startswith("lr=")]
        assert lrs == [1e-3, 1e-4, 2e-3, 3e-3]
    assert adapters["whole"] == adapters["broken"]


@pytest.mark.slow
def test_an_app_of_ones_own_goes_on_by_the_same_command(tmp_path: Path) -> None:
    """recipes/hydra_app, killed and gone on with from another directory: the same adapters."""
    make_model(tmp_path / "model")
    make_data(tmp_path / "sums.jsonl")
    line = "--multirun lr=1e-3,1e-4 model=model data=sums.jsonl +rfflow.engine.accelerator=cpu hydra.sweep.dir"
    adapters = []
    for name in ("whole", "broken"):
        words = [sys.executable, str(ROOT / "recipes/hydra_app/app.py"), *f"{line}={name}".split()]
        process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert process.stdout is not None
        for printed in process.stdout:
            if name == "broken" and printed.startswith(b"chunk 2"):
                process.kill()
        process.wait()
        if name == "broken":
            again = [sys.executable, "-m", "rfflow", f"resume={tmp_path / name}"]
            done = subprocess.run(again, cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
        files = [tmp_path / name / f"runs/{run}/checkpoints/final/adapter_model.safetensors" for run in (0, 1)]
        adapters.append([file.read_bytes() for file in files])
    assert adapters[0] == adapters[1]
