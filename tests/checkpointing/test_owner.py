"""A checkpoint, and a file of weights, says whose it is: one that was exchanged, renamed or copied is not taken."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from rfflow.checkpointing import experiment_file
from rfflow.checkpointing.checkpoints import Checkpoints
from rfflow.runs.experiment import Callback, Experiment
from rfflow.runs.owner import ForeignFile, Owner, read_label
from rfflow.runs.paths import ExperimentPaths, RunPaths
from rfflow.runs.run import Run, RunState
from tests.engine.test_restoring import Disk, Killed, experiment, locks_die_with_the_process, outcome, play
from tests.support.toy import put, quick_inbox

__all__ = ["quick_inbox"]

PLAN = {
    (0, 0): [{"op": "clone", "run": 0, "overrides": ["lr=2"], "warm_start": True}],
    (0, 1): [{"op": "clone", "run": 0, "overrides": ["lr=3"], "warm_start": True}],
}


def killed(root: Path) -> ExperimentPaths:
    """Leave an experiment of two runs and two clones of the first in the middle, with two checkpoints of most."""

    class Kill(Callback):
        def on_chunk_start(self, experiment: Experiment, chunk: int) -> None:
            if chunk == 3:
                raise Killed

    engine = experiment(root, PLAN, runs=2)
    engine.fabric._callbacks.append(Kill())
    with Disk(), pytest.raises(Killed), locks_die_with_the_process():
        engine.run()
    return ExperimentPaths(root)


def exchange(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    os.rename(one, aside)
    os.rename(other, one)
    os.rename(aside, other)


def newest(run: RunPaths) -> Path:
    return run.checkpoints / f"step-{Checkpoints(run.checkpoints).steps()[0]}"


def exchange_checkpoints(paths: ExperimentPaths) -> None:
    exchange(newest(paths.run(0)), newest(paths.run(1)))


def exchange_folders(paths: ExperimentPaths) -> None:
    exchange(paths.run(0).checkpoints, paths.run(1).checkpoints)


def rename(paths: ExperimentPaths) -> None:
    os.rename(newest(paths.run(0)), paths.run(0).checkpoints / "step-99")


def copy_from_elsewhere(paths: ExperimentPaths) -> None:
    other = killed(paths.root.with_name("other"))
    shutil.rmtree(newest(paths.run(0)))
    shutil.copytree(newest(other.run(0)), newest(paths.run(0)).with_name("step-99"))


def exchange_beginnings(paths: ExperimentPaths) -> None:
    """Both are of the same parent, at different steps."""
    exchange(paths.run(2).start, paths.run(3).start)


def take_weights_for_a_beginning(paths: ExperimentPaths) -> None:
    shutil.copyfile(paths.run(1).weights, paths.run(2).start)


@pytest.mark.parametrize(
    ("move", "said"),
    [
        (
            exchange_checkpoints,
            "0/checkpoints/step-9 is not what run 0 has written at step 9: it is of run 1, at step 9",
        ),
        (exchange_folders, "it is of run 1, at step"),
        (rename, "step-99 is not what run 0 has written at step 99: it is of step 9"),
        (copy_from_elsewhere, "it is of run 0 of another experiment, at step 9"),
        (exchange_beginnings, "start.safetensors is not what run 0 has written at step 3: it is of step 6"),
        (take_weights_for_a_beginning, "it is of run 1, at step"),
    ],
)
@pytest.mark.usefixtures("quick_inbox")
def test_what_is_another_runs_is_not_gone_on_from(
    tmp_path: Path, move: Callable[[ExperimentPaths], None], said: str
) -> None:
    """It is said whose it is, nothing is removed or written, and once it is in its place again all goes on."""
    paths = killed(tmp_path / "x")
    shutil.copytree(paths.root, tmp_path / "before")
    move(paths)
    with pytest.raises(ForeignFile) as error, locks_die_with_the_process():
        play(paths.root, plan=PLAN)
    assert said in str(error.value).replace(f"{tmp_path}/x/runs/", ""), error.value
    for run in range(4):
        assert Checkpoints(paths.run(run).checkpoints).steps()
    shutil.rmtree(paths.root)
    os.rename(tmp_path / "before", paths.root)
    play(paths.root, plan=PLAN)
    assert {state for _, state, *_ in outcome(paths.root)["states"]} == {RunState.COMPLETED}


@pytest.mark.usefixtures("quick_inbox")
def test_a_clone_does_not_start_from_weights_that_are_another_runs(tmp_path: Path) -> None:
    """Where they were exchanged under a run that has ended, or under one that trains."""

    class Meddle(Callback):
        def on_chunk_start(self, experiment: Experiment, run: Run, chunk: int) -> None:
            if (run.number, chunk) == (0, 1):
                engine.slots.worker._drafts.wait_for_all()
                exchange(experiment.paths.run(0).weights, experiment.paths.run(1).weights)
                op = {"op": "clone", "run": 1, "overrides": ["lr=2"], "warm_start": True}
                put(experiment.paths.control, "a.yaml", op)

    engine = experiment(tmp_path / "x", {}, runs=2)
    engine.fabric._callbacks.append(Meddle())
    engine.run()
    engine.close()
    (entry,) = outcome(tmp_path / "x")["ops"]
    assert entry["outcome"] == "refused"
    assert "last.safetensors is not what run 1 has written at step 3: it is of run 0, at step 3" in entry["detail"]
    paths = ExperimentPaths(tmp_path / "x")
    exchange(paths.run(0).weights, paths.run(1).weights)
    with pytest.raises(ForeignFile, match="of run 1, at step 12"), locks_die_with_the_process():
        play(paths.root, plan={})


@pytest.mark.usefixtures("quick_inbox")
def test_files_of_an_experiment_that_has_no_id_are_taken_as_they_are(tmp_path: Path) -> None:
    """One that was begun before files said whose they are goes on; what it writes from now on says no more."""
    paths = killed(tmp_path / "x")
    state = paths.state.read_text().partition("\n")[2]
    plain = json.loads(state)
    del plain["id"]
    body = json.dumps(plain) + "\n"
    paths.state.write_text(
        json.dumps({"version": experiment_file.VERSION, "crc32": zlib.crc32(body.encode())}) + "\n" + body
    )
    exchange_beginnings(paths)
    play(paths.root, plan=PLAN)
    label = read_label(paths.run(0).weights)
    assert label is not None and label["experiment"] == ""
    Owner("", 0, "").check(paths.run(0).weights, None)
