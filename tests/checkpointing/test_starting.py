"""How an experiment was started belongs to it, and nobody starts another one in its directory."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rfflow.checkpointing import experiment_file
from rfflow.checkpointing.starting import Command
from rfflow.control.ownership import Lock, check_at_rest, lock_of_experiment
from rfflow.engine import restoring
from rfflow.errors import ConfigError, EngineError
from rfflow.launch import resume
from rfflow.runs.experiment import Callback, Experiment
from rfflow.runs.paths import ExperimentPaths
from rfflow.runs.run import RunState
from tests.launch.test_cli import Shell, rfflow
from tests.launch.test_resume_command import started

__all__ = ["rfflow"]

pytestmark = pytest.mark.usefixtures("hydra_restore_singletons")

COMMAND = Command(
    is_sweep=True,
    directory="outputs/x",
    cwd="",
    config_name="config",
    main="/somewhere/conf",
    config_path="conf",
    config_dirs=("/mine",),
    hydra=("hydra.sweep.subdir=runs/${seed}",),
    task=("peft.r=2,4", "peft.lora_alpha=${peft.r}", "model.token=${oc.env:NOT_SET}"),
)


@pytest.fixture(autouse=True)
def _forgets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(resume, "_requested", None)
    monkeypatch.chdir(tmp_path)
    yield


@pytest.mark.parametrize("is_left", [True, False])
@pytest.mark.parametrize("is_sweep", [True, False])
def test_what_hydra_has_left_is_not_needed(tmp_path: Path, is_left: bool, is_sweep: bool) -> None:
    """Neither where it is of a later command nor where it is gone; and what was typed goes on as it was typed."""
    command = replace(COMMAND, cwd=str(tmp_path), is_sweep=is_sweep)
    root = started(tmp_path / "outputs/x", RunState.RUNNING, multirun=is_sweep, command=command)
    if not is_left:
        (root / "multirun.yaml").unlink(missing_ok=True)
        shutil.rmtree(root / ".hydra", ignore_errors=True)
    os.chdir("/")
    assert resume.command([f"resume={root}"]) == [
        *(["--multirun"] if is_sweep else []),
        *("--config-name", "config", "--config-path", "conf", "--config-dir", "/mine"),
        "hydra.sweep.subdir=runs/${seed}",
        f"hydra.{'sweep' if is_sweep else 'run'}.dir='outputs/x'",
        *command.task,
    ]
    assert Path.cwd() == tmp_path


def test_one_that_was_moved_goes_on_where_it_is(tmp_path: Path) -> None:
    root = started(tmp_path / "moved", RunState.RUNNING, command=replace(COMMAND, cwd=str(tmp_path)))
    arguments = resume.command([f"resume={root}"])
    assert arguments is not None and "hydra.sweep.dir='moved'" in arguments


def test_a_coupling_in_what_hydra_left_is_read_as_it_was_typed(tmp_path: Path) -> None:
    """Of the version before, whose own file does not say how it was started."""
    root = started(tmp_path / "x", RunState.RUNNING)
    file = root / "multirun.yaml"
    coupled = file.read_text().replace("- lr=0,1", "- lr=0,1\n    - peft.lora_alpha=${peft.r}") + "peft: {r: 16}\n"
    file.write_text(coupled)
    arguments = resume.command([f"resume={root}"])
    assert arguments is not None and "peft.lora_alpha=${peft.r}" in arguments


def test_how_it_was_started_is_written_and_read(tmp_path: Path) -> None:
    root = started(tmp_path / "x", RunState.RUNNING, command=COMMAND)
    assert resume.read_experiment_state(root).command == COMMAND
    text = ExperimentPaths(root).state.read_text()
    assert text.startswith('{"version": 2,')
    ExperimentPaths(root).state.write_text(text.replace('"version": 2', '"version": 1', 1))
    assert resume.read_experiment_state(root).command == COMMAND, "the version before is read, too"
    ExperimentPaths(root).state.write_text(text.replace('"version": 2', '"version": 7', 1))
    with pytest.raises(ConfigError, match=r"another version of rfflow: format 7\. This one reads 1 and 2\."):
        resume.read_experiment_state(root)


@pytest.mark.parametrize("mode", [["--multirun", "hydra.sweep.dir=exp"], ["hydra.run.dir=exp"]])
def test_the_command_that_goes_on_is_the_one_that_was_typed(rfflow: Shell, mode: list[str]) -> None:
    """Round the circle: started, taken apart, put together, started."""
    words = ["+recipe=sft", "peft.lora_alpha=${peft.r}", "+model.token=${oc.env:HOME}", *mode]
    rfflow(*words)
    command = rfflow.engines[0].composer.command
    again = command.arguments(Path("exp").resolve(), ["control.idle_timeout=1"])
    rfflow(*again)
    second = rfflow.engines[1].composer.command
    assert second == replace(command, task=(*command.task, "control.idle_timeout=1"))
    assert command.task == ("+recipe=sft", "peft.lora_alpha=${peft.r}", "+model.token=${oc.env:HOME}")


def everything(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


TAKEN = [
    ["--multirun", "lr=1e-3,1e-4", "hydra.sweep.dir=exp"],
    ["--multirun", "lr=1e-3,1e-4", "hydra.sweep.dir=exp", "hydra/sweeper=basic"],
    ["--multirun", "lr=choice(1,2)", "search=random", "hydra.sweep.dir=exp"],
    ["hydra.run.dir=exp"],
]


@pytest.mark.parametrize("words", TAKEN)
def test_a_refused_launch_leaves_everything_as_it_is(tmp_path: Path, rfflow: Shell, words: list[str]) -> None:
    """Refused before Hydra writes: not a byte of the experiment that is there changes, and nothing is added."""
    started(tmp_path / "exp", RunState.RUNNING, multirun="--multirun" in words)
    before = everything(tmp_path)
    said = rfflow("+recipe=sft", *words)
    assert (rfflow.status, rfflow.engines) == (1, [])
    assert "exp holds an experiment already. Go on with it: rfflow resume=exp" in said
    assert "Traceback" not in said and everything(tmp_path) == before


def test_one_that_is_still_running_says_who_has_it(tmp_path: Path, rfflow: Shell) -> None:
    root = started(tmp_path / "exp", RunState.RUNNING)
    lock = lock_of_experiment(root)
    lock.acquire()
    try:
        who = rf"The experiment in exp is still running \(process {os.getpid()} on .*, experiment .*exp\)\."
        with pytest.raises(ConfigError, match=who):
            resume.command([f"resume={root}"])
        before = everything(tmp_path)
        for words in TAKEN:
            said = rfflow("+recipe=sft", *words)
            assert rfflow.status == 1 and re.search(who, said) and everything(tmp_path) == before
    finally:
        lock.release()
    assert resume.command([f"resume={root}"]) is not None


def test_one_of_the_version_before_that_is_still_running_too(tmp_path: Path) -> None:
    """It holds its control directory only."""
    root = started(tmp_path / "exp", RunState.RUNNING)
    (root / "control").mkdir()
    lock = Lock(root / "control", root)
    lock.acquire()
    try:
        with pytest.raises(ConfigError, match="still running"):
            resume.command([f"resume={root}"])
    finally:
        lock.release()


def test_an_experiment_is_held_while_it_trains_and_let_go_afterwards(tmp_path: Path) -> None:
    """Also with no control directory, and when it ends by an error; nobody can go on with it meanwhile."""
    from tests.support.toy import Dies, toy_engine, toy_spec

    class Another(Callback):
        def on_chunk_end(self, experiment: Experiment) -> None:
            with pytest.raises(ConfigError, match="still running"):
                resume.state_of(tmp_path / "exp")
            state = experiment_file.read(experiment.paths.state)
            assert state is not None
            second = toy_engine(tmp_path / "exp", enabled=False)
            with pytest.raises(ConfigError, match="still running"):
                restoring.go_on(second, state)
            seen.append(True)

    seen: list[bool] = []
    engine = toy_engine(tmp_path / "exp", [toy_spec()], [Another(), Dies(2)], enabled=False)
    with pytest.raises(EngineError, match="killed"):
        engine.run()
    engine.close()
    assert seen == [True, True]
    check_at_rest(tmp_path / "exp")
