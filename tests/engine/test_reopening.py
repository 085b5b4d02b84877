"""A finished experiment opens again: it takes ops as ever, and waits for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rfflow.checkpointing import experiment_file
from rfflow.control.asking import drop
from rfflow.engine import restoring
from rfflow.engine.engine import Engine
from rfflow.errors import ConfigError
from rfflow.runs.experiment import Callback, Experiment
from rfflow.runs.paths import ExperimentPaths
from rfflow.runs.run import Run, RunState
from tests.support.toy import toy_engine, toy_spec

CLONE = {"op": "clone", "run": 0, "overrides": ["lr=7"], "warm_start": True}


class Person(Callback):
    """Asks for something at each wait, the first first."""

    def __init__(self, *asked: dict[str, Any]):
        self.asked = list(asked)
        self.waits = 0
        self.control = Path()

    def on_wait(self, experiment: Experiment, control: Path) -> None:
        self.waits += 1
        if self.asked:
            drop(control, self.asked.pop(0))


def finish(engine: Engine) -> list[Run]:
    """Train to the end, and say that it was."""
    engine.run()
    engine.close()
    engine.save(is_finished=all(run.state.is_final for run in engine.experiment.runs))
    return engine.experiment.runs


def finished(root: Path, *callbacks: Callback, **settings: Any) -> None:
    """Leave an experiment of two runs, both through."""
    finish(toy_engine(root, [toy_spec(**settings), toy_spec(lr=2)], callbacks))


def opened(root: Path, *callbacks: Callback, **control: Any) -> Engine:
    """Open it again, as ``resume=`` does."""
    state = experiment_file.read(ExperimentPaths(root).state)
    assert state is not None
    engine = toy_engine(root, (), callbacks, **control)
    restoring.go_on(engine, state)
    for record in state.runs:
        spec = toy_spec(lr=2) if record.number == 1 else toy_spec(lr=7) if record.parent is not None else toy_spec()
        run = engine.add(spec, record.number, record.overrides)
        restoring.take_up(engine, run, record)
    return engine


def test_what_waits_in_its_control_directory_is_taken(tmp_path: Path) -> None:
    """A clone of the winner, warm: on the chunk after the parent's last, as in an experiment that goes."""
    finished(tmp_path)
    drop(ExperimentPaths(tmp_path).control, CLONE)
    person = Person()
    runs = finish(opened(tmp_path, person))
    assert [(run.state, run.parent) for run in runs] == [(RunState.COMPLETED, parent) for parent in (None, None, 0)]
    assert runs[2].chunks_before == len(runs[0].chunks) and runs[2].paths.start.exists()
    assert person.waits == 1, "behind it, it waits for more"
    state = experiment_file.read(ExperimentPaths(tmp_path).state)
    assert state is not None and state.is_finished and len(state.runs) == 3


def test_it_waits_for_ops_and_again_behind_them(tmp_path: Path) -> None:
    finished(tmp_path)
    person = Person(CLONE, CLONE)
    runs = finish(opened(tmp_path, person))
    assert [run.number for run in runs] == [0, 1, 2, 3] and person.waits == 3


def test_opened_for_nothing_it_ends_as_it_was(tmp_path: Path) -> None:
    finished(tmp_path)
    before = [path.read_bytes() for path in sorted(tmp_path.glob("runs/*/**/*.safetensors"))]
    finish(opened(tmp_path, Person()))
    assert [path.read_bytes() for path in sorted(tmp_path.glob("runs/*/**/*.safetensors"))] == before
    state = experiment_file.read(ExperimentPaths(tmp_path).state)
    assert state is not None and state.is_finished and [run.state for run in state.runs] == [RunState.COMPLETED] * 2


def test_killed_while_it_is_open_it_goes_on(tmp_path: Path) -> None:
    """The clone from its last boundary; what is there of it counts."""

    class Killed(BaseException):
        pass

    class Kills(Callback):
        def on_chunk_end(self, run: Run) -> None:
            if run.number == 2 and len(run.chunks) == 2:
                raise Killed

    finished(tmp_path)
    drop(ExperimentPaths(tmp_path).control, CLONE)
    with pytest.raises(Killed):
        opened(tmp_path, Kills()).run()
    runs = finish(opened(tmp_path, Person()))
    assert [run.state for run in runs] == [RunState.COMPLETED] * 3 and len(runs[2].chunks) == 4


def test_rows_of_another_experiment_are_refused(tmp_path: Path) -> None:
    """Runs that are compared have seen the same rows, also when they are added later."""
    finished(tmp_path)
    drop(ExperimentPaths(tmp_path).control, CLONE)
    engine = opened(tmp_path, Person())

    def check(rows: Any) -> None:
        raise ConfigError("The rows are others.")

    engine._placement.builds.check_rows = check
    assert len(finish(engine)) == 2
    (refused,) = (ExperimentPaths(tmp_path).control / "rejected").glob("*.error")
    assert "The rows are others." in refused.read_text()


def test_who_deletes_the_last_stopped_run_is_waited_for_still(tmp_path: Path) -> None:
    """It had said that it would wait: the next op may be a clone."""
    person = Person({"op": "delete", "run": 1}, CLONE)
    drop_first = {"op": "stop", "run": 1}

    class Stops(Callback):
        def on_chunk_end(self, experiment: Experiment, run: Run) -> None:
            if run.number == 1 and len(run.chunks) == 1:
                drop(experiment.paths.control, drop_first)

    engine = toy_engine(tmp_path, [toy_spec(), toy_spec(lr=2)], [Stops(), person])
    runs = finish(engine)
    assert [run.state for run in runs] == [RunState.COMPLETED, RunState.DELETED, RunState.COMPLETED]
