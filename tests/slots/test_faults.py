"""What goes wrong on several processes costs time, and no line, no chunk, no run and no op."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from rfflow.config.spec import CheckpointSpec
from rfflow.errors import ConfigError, EngineError
from rfflow.runs.events import Failed, Heard
from rfflow.runs.experiment import Callback, Experiment
from rfflow.runs.run import Run, RunState
from rfflow.slots.serve import _portable
from tests.slots.test_processes import CHUNKS, Watch, be_impatient, ends, expected, kill, make, root, slots_of, states
from tests.support.counting import STEPS_A_CHUNK
from tests.support.toy import put, quick_inbox, toy_engine, toy_spec

__all__ = ["expected", "quick_inbox", "root"]


class Lines(Callback):
    """Notes what was logged, and does something at one of the lines."""

    def __init__(self, **do: Callable[[], None]):
        self.lines: list[tuple[int, int]] = []
        self._do = {int(at.strip("_")): what for at, what in do.items()}

    def on_log(self, experiment: Experiment, run: Run, step: int) -> None:
        self.lines.append((run.number, step))
        self._do.get(len(self.lines), lambda: None)()


LINES = [(run, step) for run in range(4) for step in range(1, CHUNKS * STEPS_A_CHUNK + 1)]


def test_no_line_is_lost_or_told_twice_when_a_worker_is_killed_at_a_boundary(root: Path, expected: list[str]) -> None:
    """The checkpoint of that boundary was begun, and is not there."""
    lines = Lines()
    engine = make(root, lines, Watch(6, lambda: kill(engine, 1)))
    engine.run()
    engine.close()
    assert ends(root) == expected and sorted(lines.lines) == LINES


def test_no_line_is_told_twice_when_workers_are_killed_in_a_row(root: Path, expected: list[str]) -> None:
    def both() -> None:
        for slot in (0, 1):
            if slots_of(engine).pid(slot):
                kill(engine, slot)

    lines = Lines(_20=both, _21=both, _22=both)
    engine = make(root, lines)
    engine.run()
    engine.close()
    assert ends(root) == expected and sorted(lines.lines) == LINES


def test_runs_without_checkpoints_stay_where_they_are(root: Path) -> None:
    lines, watch = Lines(), Watch()
    engine = toy_engine(
        root, [toy_spec(n) for n in (6, 2, 4)], [lines, watch], processes=2, checkpoint=CheckpointSpec(every=None)
    )
    engine.run()
    engine.close()
    assert states(engine) == [RunState.COMPLETED] * 3
    assert len(set(lines.lines)) == len(lines.lines) and len(watch.chunks) == 12


@pytest.mark.parametrize("every", [None, 1, 2])
@pytest.mark.usefixtures("quick_inbox")
def test_a_stopped_run_can_be_resumed_when_its_worker_is_lost(root: Path, every: int | None) -> None:
    class OnWait(Callback):
        count = 0

        def on_wait(self, experiment: Experiment) -> None:
            self.count += 1
            if self.count == 1:
                for slot in (0, 1):
                    if slots_of(engine).pid(slot):
                        kill(engine, slot)
                put(root / "control", "2.yaml", {"op": "resume", "run": 0})

    stop = Watch(1, lambda: put(root / "control", "1.yaml", {"op": "stop", "run": 0}) and None)
    lines = Lines()
    engine = toy_engine(
        root,
        [toy_spec(CHUNKS)] * 2,
        [stop, lines, OnWait()],
        processes=2,
        checkpoint=CheckpointSpec(every=every),
        idle_timeout=20,
    )
    engine.run()
    engine.close()
    assert states(engine) == [RunState.COMPLETED] * 2
    assert sorted(lines.lines) == LINES[: 2 * CHUNKS * STEPS_A_CHUNK]


@pytest.mark.parametrize("verb", ["stop", "delete"])
@pytest.mark.parametrize("every", [None, 1, 2])
@pytest.mark.usefixtures("quick_inbox")
def test_an_op_on_a_run_whose_worker_is_being_lost(root: Path, verb: str, every: int | None) -> None:
    def do() -> None:
        put(root / "control", "1.yaml", {"op": verb, "run": "all"})
        for slot in (0, 1):
            if slots_of(engine).pid(slot):
                kill(engine, slot)

    engine = toy_engine(
        root,
        [toy_spec(CHUNKS)] * 3,
        [Watch(3, do)],
        processes=2,
        checkpoint=CheckpointSpec(every=every),
    )
    engine.run()
    engine.close()
    assert set(states(engine)) == {RunState.STOPPED if verb == "stop" else RunState.DELETED}


@pytest.mark.usefixtures("quick_inbox")
def test_several_clones_asked_for_while_others_train(root: Path) -> None:
    def ask() -> None:
        for number in range(3):
            put(root / "control", f"{number}.yaml", {"op": "clone", "run": number, "overrides": ["lr=3,4"]})

    lines = Lines(_8=ask)
    engine = make(root, lines)
    engine.run()
    engine.close()
    assert states(engine) == [RunState.COMPLETED] * 10
    assert sorted(lines.lines) == [(run, step) for run in range(10) for step in range(1, 13)]


@pytest.mark.parametrize("where", ["build", "write"])
def test_a_worker_that_hangs_while_it_builds_or_saves_is_replaced(
    root: Path, where: str, expected: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    be_impatient(monkeypatch)
    specs = [toy_spec(CHUNKS), toy_spec(CHUNKS), toy_spec(CHUNKS, hangs=where), toy_spec(CHUNKS)]
    engine = toy_engine(root, specs, processes=2)
    engine.run()
    engine.close()
    assert states(engine) == [RunState.COMPLETED] * 4 and ends(root) == expected
    assert f"while run 2 is {'built there' if where == 'build' else 'written to the disk'}" in caplog.text


def test_a_run_that_ends_the_processes_that_build_it_is_named_before_training(root: Path) -> None:
    engine = toy_engine(root, [toy_spec(CHUNKS), toy_spec(CHUNKS), toy_spec(CHUNKS, breaks="process")], processes=2)
    with pytest.raises(ConfigError, match=r"^Run 2 .*cannot be built: 2 workers were lost .* ended with status 7"):
        engine.run()
    engine.close()


@pytest.mark.usefixtures("quick_inbox")
def test_a_clone_that_ends_the_processes_that_build_it_is_refused(root: Path, expected: list[str]) -> None:
    def ask() -> None:
        put(root / "control", "1.yaml", {"op": "clone", "run": 0, "overrides": ["breaks=process"]})

    engine = make(root, Watch(5, ask))
    engine.run()
    engine.close()
    assert states(engine) == [RunState.COMPLETED] * 4 and ends(root) == expected
    assert "2 workers were lost while they built it" in (root / "control/rejected/1.yaml.error").read_text()


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("raises", "RuntimeError: no driver for this toy"),
        ("exits", "ended with status 3 before it could begin; its own words stand above"),
    ],
)
def test_a_worker_that_cannot_begin_says_why_and_is_not_tried_again(
    root: Path, expected: list[str], how: str, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    """No run that was to be built there is to blame."""
    specs = [toy_spec(CHUNKS)] * 4
    engine = toy_engine(root, specs, processes=2, environments={1: {"TOY_IS_BROKEN": how}})
    engine.run()
    engine.close()
    assert states(engine) == [RunState.COMPLETED] * 4 and ends(root) == expected
    assert caplog.text.count(f"{told}. It is given up.") == caplog.text.count("is lost") == 1


def test_where_no_worker_can_begin_the_experiment_ends_with_their_words(root: Path) -> None:
    engine = toy_engine(
        root, [toy_spec(CHUNKS)] * 2, processes=2, environments={slot: {"TOY_IS_BROKEN": "1"} for slot in (0, 1)}
    )
    told = r"Every slot was lost.*RuntimeError: no driver for this toy.*Nothing is saved .* give the command again\.$"
    with pytest.raises(EngineError, match=told):
        engine.run()
    engine.close()


def test_what_two_runs_claim_on_two_devices_is_refused_as_on_one(root: Path) -> None:
    """Where an app has built the trainers, only their workers know what they write to."""
    specs = [toy_spec(CHUNKS, claims=["x"]), toy_spec(CHUNKS), toy_spec(CHUNKS, claims=["y"]), toy_spec(CHUNKS)]
    specs[3] = toy_spec(CHUNKS, claims=["x"])
    engine = toy_engine(root, specs, processes=2)
    with pytest.raises(ConfigError, match=r"^Run 3.*: Runs 0 and 3 both write to x"):
        engine.run()
    engine.close()


class FromTheHub(OSError):
    """Made as those of huggingface_hub are, of more than their words."""

    def __init__(self, message: str, *, response: object):
        super().__init__(message)


def test_an_error_that_cannot_be_unpickled_is_told_by_its_words() -> None:
    heard = pickle.loads(_portable(Heard(0, 1, Failed(FromTheHub("gated", response=None)))))
    assert str(heard.event.error) == "gated" and heard.event.error.kind == "FromTheHub"
