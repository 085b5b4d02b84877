"""Whatever the order in which devices tell of what they do, and are lost: no op, no line and no chunk goes astray."""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rfflow.config.spec import CheckpointSpec, LimitSpec, QuotasSpec
from rfflow.control.items import is_op_file
from rfflow.control.journal import Journal
from rfflow.engine.engine import Engine
from rfflow.runs.chunks import ChunkResult
from rfflow.runs.experiment import Callback, Experiment
from rfflow.runs.run import Run, RunState
from tests.support.counting import STEPS_A_CHUNK
from tests.support.interleaving import InterleavedSlots
from tests.support.toy import put, settle_at_once, toy_engine, toy_spec


class Listener(Callback):
    """Drops files of ops at chance ends of chunks, and notes what it hears."""

    def __init__(self, draw: random.Random, files: int):
        self.lines: list[tuple[int, int]] = []
        self.chunks: list[tuple[int, int]] = []
        self.files: list[str] = []
        self.own: dict[str, int] = {}
        """Files that name but the run whose chunk had just ended, and how many it had trained then."""
        self._draw = draw
        self._left = files

    def on_log(self, experiment: Experiment, run: Run, step: int) -> None:
        self.lines.append((run.number, step))

    def on_chunk_end(self, experiment: Experiment, run: Run, result: ChunkResult) -> None:
        self.chunks.append((run.number, result.chunk))
        while self._left and self._draw.random() < 0.4:
            self._left -= 1
            self.files.append(f"{len(self.files):02}.yaml")
            ops = [self._op(run.number, len(experiment.runs)) for _ in range(self._draw.choice((1, 1, 2)))]
            put(experiment.paths.control, self.files[-1], ops)
            if all(op["run"] == run.number for op in ops):
                self.own[self.files[-1]] = len(run.chunks)

    def _op(self, own: int, runs: int) -> dict[str, Any]:
        verb = self._draw.choice(("stop", "stop", "resume", "clone", "delete"))
        one = self._draw.choice((own, self._draw.randrange(runs)))
        target = self._draw.choice((one, one, one, "all", {"best": 1}, {"worst": "50%"}))
        more = {"overrides": [f"lr={self._draw.randrange(9)}"]} if verb == "clone" else {}
        return {"op": verb, "run": target if verb != "clone" else one, **more}


def play(seed: int, root: Path) -> tuple[Engine, Listener]:
    """Run an experiment in which chance decides everything."""
    draw = random.Random(seed)
    listener = Listener(draw, draw.randrange(6))
    engine = toy_engine(
        root,
        [toy_spec(draw.randrange(1, 5)) for _ in range(draw.randrange(1, 6))],
        [listener],
        checkpoint=CheckpointSpec(every=draw.choice((1, 1, 2))),
        make_slots=lambda spec: InterleavedSlots(spec, draw.randrange(2, 4), draw, losses=draw.choice((0, 0, 1, 3))),
    )
    engine.run()
    engine.close()
    return engine, listener


def count_of(run: Run) -> int:
    """Return what a run has counted that was never interrupted."""
    value = run.number
    for step in range(1, run.step + 1):
        value = (value * 6364136223846793005 + step) % 2**64
    return value


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32))
def test_nothing_goes_astray(seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        settle_at_once(patch)
        for name in ("MOST_LOSSES", "MOST_LOSSES_BY_A_BUILD"):
            patch.setattr(f"rfflow.engine.losses.{name}", 1000)
        engine, heard = play(seed, Path(folder))
        runs, control = engine.experiment.runs, engine.experiment.paths.control

        answered = [path.name for place in ("done", "rejected") for path in (control / place).iterdir()]
        assert sorted(filter(is_op_file, answered)) == heard.files, "a file was not answered, or twice"
        assert not any(map(is_op_file, (path.name for path in control.iterdir())))

        assert set(Counter(heard.lines).values()) <= {1}, "a line was told twice"
        assert set(Counter(heard.chunks).values()) <= {1}, "a chunk was told twice"
        for run in runs:
            lines = [step for number, step in heard.lines if number == run.number]
            assert lines == list(range(1, len(lines) + 1))
            # More than of its chunks, where it was lost in the middle of the next and then stopped.
            assert len(lines) // STEPS_A_CHUNK == len(run.chunks)
            assert [chunk for number, chunk in heard.chunks if number == run.number] == list(range(len(run.chunks)))
            assert run.turn is None
            if run.state is RunState.COMPLETED:
                assert run.step == STEPS_A_CHUNK * run.spec.chunks
                assert int((run.paths.root / "final").read_text()) == count_of(run)
        check_states(runs, engine)
        for entry in Journal(engine.experiment.paths.ops).read():
            if entry.outcome == "applied" and entry.op != "clone" and entry.file in heard.own:
                assert entry.chunk == heard.own[entry.file], f"{entry} came later than it was asked for"


def check_states(runs: list[Run], engine: Engine) -> None:
    """Check that what the journal says became of each run did, and at the chunk that it names."""
    last = {
        entry.run: entry
        for entry in Journal(engine.experiment.paths.ops).read()
        if entry.outcome == "applied" and entry.op != "clone"
    }
    for run in runs:
        entry = last.get(run.number)
        expected = {"stop": RunState.STOPPED, "delete": RunState.DELETED}.get(entry.op if entry else "")
        assert run.state is (expected or RunState.COMPLETED), run
        if expected is not None and entry is not None:
            assert entry.chunk == len(run.chunks), f"{run} has trained on"


class Stops(Callback):
    """Asks for a clone at every end of a chunk of run 0, and stops every other run where it first comes to an end."""

    def __init__(self) -> None:
        self.files = 0

    def on_chunk_end(self, experiment: Experiment, run: Run, result: ChunkResult) -> None:
        op: dict[str, Any] | None = None
        if run.number == 0:
            op = {"op": "clone", "run": 0, "overrides": ["lr=3"]}
        elif run.parent is None and len(run.chunks) == 1:
            op = {"op": "stop", "run": run.number}
        if op is not None:
            self.files += 1
            put(experiment.paths.control, f"{self.files:02}.yaml", [op])


@pytest.mark.parametrize("seed", range(5))
def test_an_op_takes_hold_where_it_was_asked_for_while_a_clone_is_built(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of a chunk is heard while the clone is built: that run does not go on before somebody has looked."""
    settle_at_once(monkeypatch)
    engine = toy_engine(
        tmp_path,
        [toy_spec(4) for _ in range(5)],
        [Stops()],
        make_slots=lambda spec: InterleavedSlots(spec, 3, random.Random(seed)),
    )
    engine.run()
    engine.close()
    assert [len(run.chunks) for run in engine.experiment.runs[:5]] == [4, 1, 1, 1, 1]


class Together(Callback):
    """Notes where runs train while others do."""

    def __init__(self) -> None:
        self.places: list[set[int]] = []

    def on_chunk_start(self, experiment: Experiment) -> None:
        self.places.append({run.turn.slot for run in experiment.runs if run.turn is not None and run.number in LIMITED})


LIMITED = (0, 2, 3)


@pytest.mark.parametrize("seed", range(5))
def test_runs_that_ask_under_limits_stand_on_one_slot(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when its worker is lost: two workers that do not know of each other would use the limit twice."""
    monkeypatch.setattr(
        "rfflow.engine.money.keys_of", lambda run, limits: {"generator": "small"} if run.number in LIMITED else {}
    )
    monkeypatch.setattr("rfflow.scheduling.scheduler._SLACK", -1)  # nobody is at home anywhere
    for name in ("MOST_LOSSES", "MOST_LOSSES_BY_A_BUILD"):
        monkeypatch.setattr(f"rfflow.engine.losses.{name}", 1000)
    seen = Together()
    draw = random.Random(seed)
    engine = toy_engine(
        tmp_path,
        [toy_spec(4) for _ in range(6)],
        [seen],
        make_slots=lambda spec: InterleavedSlots(spec, 3, draw, losses=2 * (seed % 2)),
        quotas=QuotasSpec(limits={"small": LimitSpec(rpm=5)}),
    )
    engine.run()
    engine.close()
    assert all(run.state is RunState.COMPLETED for run in engine.experiment.runs)
    assert max(map(len, seen.places)) == 1
    others = {chunk.slot for run in engine.experiment.runs if run.number not in LIMITED for chunk in run.chunks}
    assert len(others) > 1
