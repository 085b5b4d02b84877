"""Random sessions of ops, malformed files and chunks against the real engine, with a model of what must hold.

The engine runs inside a greenlet of its own and hands over after every chunk, so that a rule can happen between any two
chunks exactly as it would for a person who watches. Only the trainers are toys (they count their steps).
"""

from __future__ import annotations

import copy
import itertools
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import greenlet
import pytest
import yaml
from hypothesis import Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from rfflow.config.spec import MemorySpec, RunSpec
from rfflow.control.items import is_op_file
from rfflow.control.journal import Journal
from rfflow.control.status import read_status
from rfflow.runs.chunks import ChunkResult
from rfflow.runs.experiment import Callback, Experiment
from rfflow.runs.run import Run, RunState
from rfflow.worker.memory.offload import Tier
from tests.support import chance
from tests.support.toy import STATE_BYTES, STEPS_A_CHUNK, put, settle_at_once, toy_engine, toy_spec

Document = Mapping[str, Any]

LIVE = (RunState.QUEUED, RunState.RUNNING)
CAN = {
    "stop": LIVE,
    "resume": (RunState.STOPPED,),
    "clone": (*LIVE, RunState.STOPPED, RunState.COMPLETED, RunState.FAILED),
    "delete": (*LIVE, RunState.STOPPED, RunState.COMPLETED, RunState.FAILED),
}


# --- the model --------------------------------------------------------------------------------------------------------


class Refused(Exception):
    """The model says that an op file must be refused."""


@dataclass
class Expected:
    """How a run must stand."""

    spec: RunSpec
    state: RunState = RunState.QUEUED
    chunks: int = 0
    metric: float | None = None
    parent: int | None = None
    is_closed: bool = False
    """Its trainer was let go when the experiment was closed."""


@dataclass
class Model:
    """What must be true of an experiment, said as simply as can be."""

    runs: dict[int, Expected] = field(default_factory=dict)
    journal: list[tuple[str, str | None, int | None]] = field(default_factory=list)
    """File, verb and run of each applied step; verb and run are None where a file was refused."""
    answers: dict[str, str] = field(default_factory=dict)
    """The folder in which each file lies."""

    def answer(self, name: str, documents: Sequence[Document] | None) -> None:
        """Apply a file whole, or refuse it whole; None is a file that is no ops."""
        before = copy.deepcopy(self.runs)
        steps: list[tuple[str, str | None, int | None]] = []
        try:
            if documents is None:
                raise Refused
            for document in documents:
                for run in self._targets(document):
                    steps += [(name, document["op"], run) for _ in self._apply(document, run)]
        except Refused:
            self.runs, steps = before, [(name, None, None)]
        self.answers[name] = "rejected" if steps[0][1] is None else "done"
        self.journal += steps

    def _apply(self, document: Document, number: int) -> Iterator[None]:
        run = self.runs[number]
        match document["op"]:
            case "stop":
                run.state = RunState.STOPPED
            case "resume":
                if run.is_closed:
                    raise Refused
                run.state = RunState.RUNNING if run.chunks else RunState.QUEUED
            case "delete":
                run.state = RunState.DELETED
            case "clone":
                for overrides in sweep(document.get("overrides", [])):
                    self._clone(number, overrides, document.get("warm_start", False))
                    yield
                return
        yield

    def _clone(self, number: int, overrides: Mapping[str, Any], warm_start: bool) -> None:
        parent = self.runs[number]
        if warm_start and not parent.chunks:
            raise Refused
        config = {**parent.spec.config, **overrides}
        chunks = config.pop("chunks", parent.spec.chunks)
        breaks = config.get("breaks")
        if "nonsense" in overrides or (breaks and (breaks != "architecture" or warm_start)):
            raise Refused
        self.runs[max(self.runs) + 1] = Expected(toy_spec(chunks, **config), parent=number)

    def _targets(self, document: Document) -> list[int]:
        target, states = document["run"], CAN[document["op"]]
        able = [number for number, run in sorted(self.runs.items()) if run.state in states]
        if target == "all" or isinstance(target, dict):
            if not able:
                raise Refused
            return able if target == "all" else self._ranked(target, able)
        numbers = target if isinstance(target, list) else [target]
        if any(number not in able for number in numbers):
            raise Refused
        return numbers

    def _ranked(self, target: Document, able: list[int]) -> list[int]:
        ((end, amount),) = target.items()
        if all(self.runs[number].metric is None for number in able):
            raise Refused
        sign = 1 if end == "best" else -1

        def key(number: int) -> tuple[bool, float, int]:
            metric = self.runs[number].metric
            return (metric is None, sign * (metric or 0.0), number)

        if isinstance(amount, str):
            share = len(able) * int(amount.rstrip("%")) / 100
            amount = math.ceil(share) if end == "best" else math.floor(share)
        if not 1 <= amount <= len(able):
            raise Refused
        return sorted(able, key=key)[:amount]


def sweep(overrides: Sequence[str]) -> list[dict[str, Any]]:
    """Return the settings of each clone, the last override varying first."""
    keys = [override.partition("=")[0] for override in overrides]
    values = [override.partition("=")[2].split(",") for override in overrides]
    return [
        {key: yaml.safe_load(value) for key, value in zip(keys, choice, strict=True)}
        for choice in itertools.product(*values)
    ]


# --- what people write ------------------------------------------------------------------------------------------------

run_numbers = st.integers(0, 7)
targets = st.one_of(
    run_numbers,
    run_numbers,
    st.lists(run_numbers, min_size=1, max_size=3, unique=True),
    st.just("all"),
    st.builds(
        lambda end, amount: {end: amount},
        st.sampled_from(["best", "worst"]),
        st.sampled_from([1, 2, 3, "34%", "50%", "100%"]),
    ),
)
override_lists = st.sampled_from(
    [
        ["lr=2"],
        ["lr=3"],
        ["lr=2,3"],
        ["chunks=2,6", "lr=5"],
        ["fails_at=1"],
        ["ends_at=0"],
        ["breaks=architecture"],
        ["breaks=config"],
        ["breaks=unexpected"],
        ["breaks=memory"],
        ["lr=4,5", "breaks=null,unexpected"],
        ["nonsense=1"],
    ]
)
documents = st.one_of(
    st.builds(lambda verb, run: {"op": verb, "run": run}, st.sampled_from(["stop", "resume", "delete"]), targets),
    st.builds(lambda verb, run: {"op": verb, "run": run}, st.sampled_from(["stop", "resume"]), run_numbers),
    st.builds(
        lambda run, overrides, warm: {"op": "clone", "run": run, "overrides": overrides, "warm_start": warm},
        st.one_of(run_numbers, st.lists(run_numbers, min_size=2, max_size=2, unique=True), st.just({"best": 1})),
        override_lists,
        st.booleans(),
    ),
)
malformed = st.sampled_from(
    [
        "",
        "{op: stop, run: 0",
        "op: stpo\nrun: 0\n",
        "op: stop\nrun: 0\nwhy: because\n",
        "op: stop\nrun: -1\n",
        "op: stop\nrun: 0\n---\nop: delete\n",
        "op: clone\nrun: 0\n",
        "op: clone\nrun: 0\noverrides: [lr.bad=1, 'trainer.callbacks=[{_target_: os.system}]']\n",
        "op: clone\nrun: 0\noverrides: ['+x._target_=os.system']\n",
        "!!python/object/apply:os.system [exit]\n",
        "a: &a [1]\nb: *a\n",
        b"\xff\xfe\x00",
        b"x" * 70_000,
        "directory",
        "symlink",
    ]
)


# --- the machine ------------------------------------------------------------------------------------------------------


class Pausing(Callback):
    """Hands over to whoever runs the engine, wherever a person could look."""

    def __init__(self) -> None:
        self.is_pausing = True

    def on_chunk_end(self, experiment: Experiment, run: Run, result: ChunkResult) -> None:
        self._pause(("chunk", run.number, result.chunk))

    def on_run_end(self, experiment: Experiment, run: Run) -> None:
        if run.state is RunState.FAILED:
            self._pause(("failed", run.number, len(run.chunks)))

    def on_wait(self, experiment: Experiment, control: Path, timeout: float | None) -> None:
        self._pause(("wait", None, None))

    def _pause(self, event: tuple[str, int | None, int | None]) -> None:
        if self.is_pausing:
            greenlet.getcurrent().parent.switch(event)


class Session(RuleBasedStateMachine):
    """A person, an engine and a model."""

    @initialize(
        specs=st.lists(
            st.sampled_from(
                [toy_spec(), toy_spec(3), toy_spec(1), toy_spec(5, fails_at=2), toy_spec(4, ends_at=1)],
            ),
            min_size=1,
            max_size=4,
        ),
        host_limit=st.sampled_from([None, 0, STATE_BYTES, 2 * STATE_BYTES]),
    )
    def begin(self, specs: list[RunSpec], host_limit: int | None) -> None:
        self.patch = pytest.MonkeyPatch()
        settle_at_once(self.patch)
        self.root = Path(tempfile.mkdtemp(prefix="rfflow-session-"))
        self.pausing = Pausing()
        self.host_limit = host_limit
        self.engine = toy_engine(self.root, specs, [self.pausing], memory=MemorySpec(host_limit=host_limit))
        self.paths = self.engine.experiment.paths
        self.paths.control.mkdir()
        self.model = Model({number: Expected(spec) for number, spec in enumerate(specs)})
        self.pending: dict[str, Sequence[Document] | None] = {}
        self.files = 0
        self.loop: greenlet.greenlet | None = None

    @rule(documents=st.lists(documents, min_size=1, max_size=3), place=st.integers(0, 9))
    def drop_ops(self, documents: list[Document], place: int) -> None:
        if len(self.model.runs) > 8:  # enough of them
            documents = [document for document in documents if document["op"] != "clone"] or [{"op": "stop", "run": 0}]
        name = self._name(place)
        put(self.paths.control, name, documents)
        self.pending[name] = documents

    @rule(verb=st.sampled_from(["stop", "resume", "stop", "resume", "clone", "delete"]), pick=st.integers(0, 99))
    def drop_what_is_possible(self, verb: str, pick: int) -> None:
        """Most of what people ask for makes sense."""
        able = [number for number, run in sorted(self.model.runs.items()) if run.state in CAN[verb]]
        if able:
            document = {"op": verb, "run": able[pick % len(able)]}
            self.drop_ops([{**document, "overrides": ["lr=7"]} if verb == "clone" else document], 5)

    @rule(content=malformed, place=st.integers(0, 9))
    def drop_rubbish(self, content: str | bytes, place: int) -> None:
        name = self._name(place)
        path = self.paths.control / name
        if content == "directory":
            path.mkdir()
            (path / "inside.yaml").write_text("op: stop\nrun: all\n")
        elif content == "symlink":
            path.symlink_to("/etc/hostname")
        else:
            put(self.paths.control, name, content)
        self.pending[name] = None

    @rule()
    def drop_what_is_no_op(self) -> None:
        """Hidden files, other endings and what is inside folders stay where they are."""
        for name in (".hidden.yaml", "notes.txt", "stop.yaml.swp"):
            (self.paths.control / name).write_text("op: delete\nrun: all\n")

    @rule()
    def vanish(self) -> None:
        """A file that is gone before anybody looked has never been."""
        path = self.paths.control / self._name(5)
        path.write_text("op: delete\nrun: all\n")
        path.unlink()

    @rule(chunks=st.integers(1, 3))
    def train(self, chunks: int) -> None:
        for _ in range(chunks):
            self._go_on()

    @precondition(lambda self: self.loop is not None and self.loop.dead)
    @rule(spec=st.sampled_from([toy_spec(), toy_spec(2)]))
    def add_a_batch(self, spec: RunSpec) -> None:
        """The sweeper's next batch comes after the engine was closed."""
        self.engine.close()
        for run in self.model.runs.values():
            run.is_closed = True
        number = max(self.model.runs) + 1
        self.engine.add(spec, number)
        self.model.runs[number] = Expected(spec)
        self._go_on()

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        try:
            for _ in range(300):
                if self._go_on() is None:
                    break
            else:
                raise AssertionError("the experiment does not end")
            for run in self.engine.experiment.runs:
                assert run.state not in LIVE, f"{run} was forgotten"
                if run.state is RunState.COMPLETED and "ends_at" not in run.spec.config:
                    assert len(run.chunks) == run.spec.chunks
            self.engine.close()
            assert not (self.paths.control / ".lock").exists()
            self._check_status()
            assert not list(self.root.glob("runs/*/.suspended*")), "the state of a run that is over was left behind"
        finally:
            self.pausing.is_pausing = False
            self.engine.close()
            self.patch.undo()
            shutil.rmtree(self.root)

    # --- one step -----------------------------------------------------------------------------------------------------

    def _name(self, place: int) -> str:
        self.files += 1
        return f"{place}-{self.files:04}.yaml"

    def _go_on(self) -> tuple[str, int | None, int | None] | None:
        """Let the engine answer what has come and train one chunk; check everything."""
        for name in sorted(self.pending):
            self.model.answer(name, self.pending[name])
        self.pending.clear()
        expected = copy.deepcopy(self.model.runs)
        if self.loop is None or self.loop.dead:
            self.loop = greenlet.greenlet(self.engine.run)
        self.loop.parent = greenlet.getcurrent()
        event = self.loop.switch()
        self._check_status(expected)
        if event is not None and event[0] == "wait":
            event = self.loop.switch()  # patience of no seconds is over at once
            assert event is None and self.loop.dead
        self._take_in(event)
        self._check_runs()
        self._check_answers()
        self._check_files(event)
        return event

    def _take_in(self, event: tuple[str, int | None, int | None] | None) -> None:
        live = [number for number, run in self.model.runs.items() if run.state in LIVE]
        if event is None:
            assert not live, f"the engine has stopped while runs {live} could train"
            return
        kind, number, chunk = event
        assert number in live, f"run {number} trained though it is {self.model.runs[number].state}"
        run = self.model.runs[number]
        fails = run.spec.config.get("fails_at") == run.chunks
        assert chunk == run.chunks and kind == ("failed" if fails else "chunk")
        if fails:
            run.state = RunState.FAILED
            return
        run.metric = float((number * 7 + chunk * 5) % 11)
        run.chunks += 1
        is_last = run.chunks == run.spec.chunks or run.spec.config.get("ends_at") == chunk
        run.state = RunState.COMPLETED if is_last else RunState.RUNNING

    def _check_runs(self) -> None:
        runs = self.engine.experiment.runs
        assert [run.number for run in runs] == sorted(self.model.runs)
        for run in runs:
            expected = self.model.runs[run.number]
            assert run.state is expected.state, run
            assert [chunk.chunk for chunk in run.chunks] == list(range(expected.chunks)), run
            assert [chunk.step for chunk in run.chunks] == [STEPS_A_CHUNK * (n + 1) for n in range(expected.chunks)]
            assert run.parent == expected.parent and run.metrics.get("eval_loss") == expected.metric
            assert run.spec.config["lr"] == expected.spec.config["lr"] and run.spec.chunks == expected.spec.chunks

    def _check_answers(self) -> None:
        control = self.paths.control
        left = [name for name in os.listdir(control) if is_op_file(name)]
        assert not left, f"files were not answered: {left}"
        for folder, ending in (("done", ".outcome"), ("rejected", ".error")):
            wanted = {name for name, place in self.model.answers.items() if place == folder}
            assert set(os.listdir(control / folder)) == wanted | {name + ending for name in wanted}
            assert all((control / folder / (name + ending)).read_text().strip() for name in wanted)
        lines = []
        for entry in Journal(self.paths.ops).read():
            is_applied = entry.outcome == "applied"
            assert entry.detail and (is_applied or entry.run is None)
            line = (entry.file, entry.op if is_applied else None, entry.run)
            if is_applied or not lines or lines[-1] != line:  # a refused file of several ops has a line for each
                lines.append(line)
        assert lines == self.model.journal

    def _check_status(self, expected: Mapping[int, Expected] | None = None) -> None:
        """It was last written when the ops had been taken and the chunk had begun."""
        expected = expected or self.model.runs
        status = read_status(self.paths.control)
        assert status is not None
        seen = {}
        for run in status["runs"]:
            has_just_begun = run["since"] is not None and run["chunk"] == 0
            assert not has_just_begun or run["state"] == "running"
            seen[run["number"]] = ("queued" if has_just_begun else run["state"], run["chunk"], run["parent"])
        assert seen == {number: (run.state.value, run.chunks, run.parent) for number, run in expected.items()}

    def _check_files(self, event: tuple[str, int | None, int | None] | None) -> None:
        assert {path.name for path in (self.root / "runs").iterdir()} == {str(number) for number in self.model.runs}
        sessions = self.engine.slots.worker.sessions
        over = [n for n, run in self.model.runs.items() if run.state not in (*LIVE, RunState.STOPPED) or run.is_closed]
        if event is not None and event[0] == "chunk":  # a run that has just ended is let go right after
            over = [number for number in over if number != event[1]]
        assert not set(over) & set(sessions), "a run that is over is still held"
        for number, session in sessions.items():
            on_disk = session.holdings.tier is Tier.DISK
            assert (self.paths.run(number).root / ".suspended.safetensors").exists() == on_disk
            assert session.holdings._ahead is None or number in self.engine._scheduler.upcoming()
        if self.host_limit is not None and event is not None and event[0] == "chunk":
            held = [t for n, t in sessions.items() if n != event[1] and t.holdings.tier is not Tier.DISK]
            assert sum(session.holdings.bytes for session in held) <= self.host_limit


QUICK = settings(
    max_examples=16,
    stateful_step_count=25,
    phases=[Phase.generate, Phase.shrink],
    report_multiple_bugs=False,
)


def test_random_sessions() -> None:
    """No run lost, none trained twice on a chunk, stopped runs stay, order respected, every file answered once."""
    run_state_machine_as_test(Session, settings=QUICK)


@pytest.mark.slow
def test_many_long_random_sessions() -> None:
    """The same for minutes, different each time."""
    long = settings(QUICK, derandomize=False, max_examples=300, stateful_step_count=60)
    run_state_machine_as_test(seed(chance.seed(usual=None))(Session), settings=long)
