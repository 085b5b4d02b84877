"""Ops at the level of the engine: what people can do wrong, and what must not end an experiment."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rfflow.checkpointing.experiment_file import read
from rfflow.config.spec import MemorySpec, RunSpec
from rfflow.control.inbox import Inbox
from rfflow.control.journal import Journal
from rfflow.engine.engine import Engine
from rfflow.errors import ConfigError
from rfflow.runs.chunks import ChunkResult
from rfflow.runs.experiment import Callback, Experiment
from rfflow.runs.run import Run, RunState
from tests.support.tiny import run_spec
from tests.support.toy import ToyTrainee, put, quick_inbox, toy_engine, toy_spec

__all__ = ["quick_inbox"]

pytestmark = pytest.mark.usefixtures("quick_inbox")


class At(Callback):
    """Calls a function after a chunk of a run."""

    def __init__(self, run: int, chunk: int, act: Callable[[Experiment], Any]):
        self.place, self.act = (run, chunk), act

    def on_chunk_end(self, experiment: Experiment, run: Run, result: ChunkResult) -> None:
        if (run.number, result.chunk) == self.place:
            self.act(experiment)


def drop(document: Any, name: str = "op.yaml") -> Callable[[Experiment], Any]:
    """Return what puts an op in place."""
    return lambda experiment: put(experiment.paths.control, name, document)


def play(engine: Engine) -> list[RunState]:
    """Run to the end; return the states."""
    engine.run()
    engine.close()
    return [run.state for run in engine.experiment.runs]


def refusal(root: Path, name: str = "op.yaml") -> str:
    """Return why a file was refused."""
    return (root / "control" / "rejected" / f"{name}.error").read_text()


def test_an_op_that_has_to_wait_for_a_run_is_not_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run trains on another device when its file is read; a later op on it waits too."""
    looks = iter([True] * 2)
    engine = toy_engine(tmp_path, [toy_spec(), toy_spec()])
    (tmp_path / "control").mkdir()
    put(tmp_path / "control", "1.yaml", {"op": "stop", "run": 0})
    put(tmp_path / "control", "2.yaml", {"op": "clone", "run": 0, "overrides": ["lr=2"]})
    monkeypatch.setattr(engine._placement, "is_training", lambda run: run.number == 0 and next(looks, False))
    assert play(engine) == [RunState.STOPPED, RunState.COMPLETED, RunState.COMPLETED]
    assert [entry.op for entry in Journal(engine.experiment.paths.ops).read()] == ["stop", "clone"]


# --- the control directory --------------------------------------------------------------------------------------------


def test_a_second_experiment_on_the_same_control_directory_is_refused_before_it_trains(tmp_path: Path) -> None:
    shared = tmp_path / "control"
    said = []

    def second(experiment: Experiment) -> None:
        engine = toy_engine(tmp_path / "second", [toy_spec()], dir=str(shared))
        with pytest.raises(ConfigError) as refused:
            engine.run()
        engine.close()
        said.append(str(refused.value))
        assert engine.experiment.runs[0].step == 0

    first = toy_engine(tmp_path / "first", [toy_spec()], [At(0, 0, second)], dir=str(shared))
    assert play(first) == [RunState.COMPLETED]
    assert "belongs to another running experiment" in said[0] and str(tmp_path / "first") in said[0]
    assert "control.dir" in said[0]
    # It is free again, and an op that waited there is answered by whoever has it.
    assert play(toy_engine(tmp_path / "third", [toy_spec()], dir=str(shared))) == [RunState.COMPLETED]


def test_a_control_directory_that_is_deleted_meanwhile_is_made_again(tmp_path: Path) -> None:
    """Ops that are dropped after that are seen, and those before are in the journal all the same."""
    steps = [
        At(0, 0, drop({"op": "stop", "run": 1}, "1.yaml")),
        At(0, 1, lambda experiment: shutil.rmtree(experiment.paths.control)),
        At(0, 2, drop({"op": "resume", "run": 1}, "2.yaml")),
    ]
    engine = toy_engine(tmp_path, [toy_spec(), toy_spec()], steps)
    assert play(engine) == [RunState.COMPLETED, RunState.COMPLETED]
    assert [entry.op for entry in Journal(engine.experiment.paths.ops).read()] == ["stop", "resume"]
    assert (tmp_path / "control" / "done" / "2.yaml").is_file()


def test_a_thousand_files_at_once_are_answered_in_order(tmp_path: Path) -> None:
    """Stop, resume, nonsense, in turns; each is answered by itself, before the next chunk."""

    def drop_all(experiment: Experiment) -> None:
        for number in range(1000):
            content = [{"op": "stop", "run": 1}, {"op": "resume", "run": 1}, "op: nonsense"][number % 3]
            put(experiment.paths.control, f"{number:04}.yaml", content)

    engine = toy_engine(tmp_path, [toy_spec(), toy_spec()], [At(0, 1, drop_all)])
    assert play(engine) == [RunState.COMPLETED, RunState.STOPPED]  # the last op of the thousand is a stop
    journal = Journal(engine.experiment.paths.ops).read()
    assert [entry.file for entry in journal] == [f"{number:04}.yaml" for number in range(1000)]
    assert [entry.op for entry in journal[:4]] == ["stop", "resume", "unknown", "stop"]
    assert len(list((tmp_path / "control" / "done").glob("*.yaml"))) == 667
    assert len(list((tmp_path / "control" / "rejected").glob("*.yaml"))) == 333


def test_an_op_that_comes_while_the_last_run_is_deleted_is_answered(tmp_path: Path) -> None:
    class OnOp(Callback):
        def on_op(self, experiment: Experiment) -> None:
            put(experiment.paths.control, "2.yaml", {"op": "stop", "run": 0})

    engine = toy_engine(tmp_path, [toy_spec()], [At(0, 0, drop({"op": "delete", "run": 0}, "1.yaml")), OnOp()])
    assert play(engine) == [RunState.DELETED]
    assert "it is deleted" in refusal(tmp_path, "2.yaml")


def test_an_op_that_comes_in_the_last_moment_is_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file written by hand is young when the last chunk ends; the experiment waits until it can be read."""
    monkeypatch.undo()  # the inbox as it is: young files may still be growing

    def write(experiment: Experiment) -> None:
        (experiment.paths.control / "op.yaml").write_text("{op: clone, run: 0, overrides: [lr=2]}")

    engine = toy_engine(tmp_path, [toy_spec()], [At(0, 3, write)])
    assert play(engine) == [RunState.COMPLETED, RunState.COMPLETED]


def test_a_journal_that_cannot_be_written_does_not_end_the_experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(self: Journal, *entries: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Journal, "append", full)
    steps = [At(0, 0, drop({"op": "stop", "run": 1})), At(0, 1, drop("op: nonsense", "bad.yaml"))]
    assert play(toy_engine(tmp_path, [toy_spec(), toy_spec()], steps)) == [RunState.COMPLETED, RunState.STOPPED]
    assert (tmp_path / "control" / "done" / "op.yaml").is_file() and refusal(tmp_path, "bad.yaml")
    assert "No space left on device" in caplog.text


def test_nothing_is_done_while_the_engine_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second of waiting is a few dozen looks at the directory, and nobody turns round in a loop."""
    looks = []
    names = Inbox._names
    monkeypatch.setattr(Inbox, "_names", lambda self: looks.append(1) or names(self))
    engine = toy_engine(tmp_path, [toy_spec()], [At(0, 0, drop({"op": "stop", "run": 0}))], idle_timeout=0.5)
    assert play(engine) == [RunState.STOPPED]
    assert len(looks) < 40  # behind an answered op events may come late: it looks every 0.03 s for a while


def test_the_status_says_at_the_end_that_nobody_waits(tmp_path: Path) -> None:
    play(toy_engine(tmp_path, [toy_spec()], [At(0, 0, drop({"op": "stop", "run": 0}))]))
    status = yaml.safe_load((tmp_path / "control" / "status.yaml").read_text())
    assert status["runs"][0]["state"] == "stopped" and status["waiting"] is False


# --- clones -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("breaks", "said"),
    [
        ("unexpected", "RuntimeError: shape mismatch deep inside a library"),
        ("memory", "MemoryError"),
        ("config", "Run 1 cannot be built"),
    ],
)
def test_a_clone_that_cannot_be_built_is_refused_and_leaves_nothing(tmp_path: Path, breaks: str, said: str) -> None:
    """Whatever a library raises: the runs that train go on."""
    op = {"op": "clone", "run": 0, "overrides": [f"breaks={breaks}"]}
    engine = toy_engine(tmp_path, [toy_spec()], [At(0, 0, drop(op))])
    assert play(engine) == [RunState.COMPLETED]
    assert "Cannot clone run 0" in refusal(tmp_path) and said in refusal(tmp_path)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["0"]
    assert json.loads(engine.experiment.paths.ops.read_text())["outcome"] == "refused"


@pytest.mark.parametrize(
    "override",
    [
        "+x._target_=os.system",
        "trainer.callbacks=[{_target_: os.system}]",
        "+x={a: {_target_: os.system, command: ls}}",
        "model.trust_remote_code=true",
        "hydra.launcher._target_=os.system",
        "lr=${oc.env:HOME}",
    ],
)
def test_code_that_is_smuggled_into_an_override_is_refused(tmp_path: Path, override: str) -> None:
    op = {"op": "clone", "run": 0, "overrides": [override]}
    assert play(toy_engine(tmp_path, [toy_spec()], [At(0, 0, drop(op))])) == [RunState.COMPLETED]
    assert override.partition("=")[0] in refusal(tmp_path)


def test_a_clone_may_not_need_more_memory_than_there_is(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    """Refused with the figures: weights, gradients, optimizer and what there is."""
    from dataclasses import replace

    from rfflow.config.spec import ControlSpec, ExperimentSpec
    from rfflow.runs.paths import ExperimentPaths

    class Composer:
        def compose_clone(self, parent: Run, overrides: tuple[str, ...], *_: Any) -> tuple[RunSpec, Any, Any]:
            return replace(parent.spec, peft=None), overrides, None

    control = ControlSpec(idle_timeout=0)
    spec = ExperimentSpec("test", accelerator="cpu", memory=MemorySpec(device_limit="1MB"), control=control)
    engine = Engine(spec, ExperimentPaths(tmp_path), composer=Composer())
    (tmp_path / "control").mkdir()
    put(tmp_path / "control", "op.yaml", {"op": "clone", "run": 0, "overrides": ["peft=none"]})
    engine.add(run_spec(tiny_model, tiny_data, args={"max_steps": 2}), 0)
    assert play(engine) == [RunState.COMPLETED]
    said = refusal(tmp_path)
    assert "weights" in said and "gradients" in said and "optimizer" in said and "1.0 MB" in said
    assert not (tmp_path / "runs" / "1").exists()


# --- runs that misbehave ----------------------------------------------------------------------------------------------


def test_a_run_that_exits_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``sys.exit()`` in a callback of the user's is that run's failure."""
    original = ToyTrainee.advance

    def advance(self: ToyTrainee) -> Any:
        if self.run.number == 0 and self._step:
            raise SystemExit(3)
        return original(self)

    monkeypatch.setattr(ToyTrainee, "advance", advance)
    engine = toy_engine(tmp_path, [toy_spec(), toy_spec()])
    assert play(engine) == [RunState.FAILED, RunState.COMPLETED]
    assert isinstance(engine.experiment.runs[0].error, SystemExit)


def test_a_clone_is_not_taken_for_one_that_was_refused_before_it(tmp_path: Path) -> None:
    """The refused one would have started warm and had the same number."""
    refused = [{"op": "clone", "run": 0, "overrides": ["lr=2"], "warm_start": True}, {"op": "stop", "run": 7}]
    steps = [At(0, 0, drop(refused)), At(0, 1, drop({"op": "clone", "run": 0, "overrides": ["lr=3"]}, "cold.yaml"))]
    engine = toy_engine(tmp_path, [toy_spec()], steps)
    assert play(engine) == [RunState.COMPLETED] * 2 and refusal(tmp_path)
    saved = read(engine.experiment.paths.state)
    assert saved is not None and [run.is_warm for run in saved.runs] == [False, False]


def test_a_stopped_run_cannot_be_resumed_once_the_experiment_was_closed(tmp_path: Path) -> None:
    """The sweeper's next batch opens the experiment again, but the stopped run's trainer is gone."""
    engine = toy_engine(tmp_path, [toy_spec(), toy_spec()], [At(0, 0, drop({"op": "stop", "run": 0}, "stop.yaml"))])
    assert play(engine) == [RunState.STOPPED, RunState.COMPLETED]
    engine.add(toy_spec(), 2)
    put(tmp_path / "control", "op.yaml", {"op": "resume", "run": 0})
    put(tmp_path / "control", "warm.yaml", {"op": "clone", "run": 0, "overrides": [], "warm_start": True})
    assert play(engine) == [RunState.STOPPED, RunState.COMPLETED, RunState.COMPLETED, RunState.COMPLETED]
    assert "warm_start" in refusal(tmp_path) and engine.experiment.runs[3].first_chunk == 1


def test_a_stopped_run_that_was_on_its_way_back_stays_on_disk(tmp_path: Path) -> None:
    """What was read ahead for a turn that does not come is let go; a lone run never reads a stopped one ahead."""
    engine = toy_engine(
        tmp_path,
        [toy_spec(), toy_spec(), toy_spec()],
        [At(0, 1, drop({"op": "stop", "run": [1, 2]}))],
        memory=MemorySpec(host_limit=0),
    )
    ahead = []

    class Look(Callback):
        def on_chunk_end(self, experiment: Experiment, run: Run, result: ChunkResult) -> None:
            holdings = {n: session.holdings for n, session in engine.slots.worker.sessions.items()}
            ahead.append({n: held._ahead is not None for n, held in holdings.items() if held is not None})

    engine.fabric._callbacks.append(Look())
    assert play(engine) == [RunState.COMPLETED, RunState.STOPPED, RunState.STOPPED]
    assert any(ahead[0].values()), "nothing is ever read ahead: this test says nothing"
    assert not any(ahead[-1].values())


@pytest.mark.parametrize(
    ("name", "by"),
    [("20261121-230757-889101829-stop.yaml", "rfflow ctl"), ("010-stop.yaml", "person, 010-stop.yaml")],
)
def test_a_line_on_an_op_names_no_file_that_nobody_has_named(
    tmp_path: Path, name: str, by: str, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []

    class Listener(Callback):
        def on_op(self, experiment: Experiment, run: Run, text: str) -> None:
            told.append(text)

    stop = At(0, 0, drop({"op": "stop", "run": 0}, name))
    resume = At(1, 1, drop({"op": "resume", "run": 0}, "resume.yaml"))
    refused = At(1, 0, drop({"op": "stop", "run": 7}, name.replace("stop", "delete")))
    engine = toy_engine(tmp_path, [toy_spec(), toy_spec()], [stop, resume, refused, Listener()])
    assert play(engine) == [RunState.COMPLETED] * 2
    assert told[0].endswith(f"({by}, after chunk 1)")
    assert (name.replace("stop", "delete") in caplog.text) is (by != "rfflow ctl")
    assert "Refused " in caplog.text
