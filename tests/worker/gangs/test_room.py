"""A gang is as large as there is memory for: those that do not fit wait for their turns."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from rfflow.config.spec import ControlSpec, ExperimentSpec, MemorySpec, RunSpec
from rfflow.engine.engine import Engine
from rfflow.runs.paths import ExperimentPaths
from rfflow.runs.run import RunState
from rfflow.worker.gangs.calibration import Choices
from rfflow.worker.gangs.gang import Gang
from rfflow.worker.gangs.room import Share, groups, share_of
from rfflow.worker.gangs.trunk import Trunk
from rfflow.worker.training.activations import SHARE
from rfflow.worker.training.longest import longest_batch
from tests.support.plain import train_alone
from tests.support.tiny import run_spec
from tests.worker.gangs.together import prepared, train
from tests.worker.training.test_exactness import outcomes


@pytest.fixture
def specs(tiny_model: Path, tiny_data: Path) -> list[RunSpec]:
    """Four runs of four steps in two chunks."""
    return [
        run_spec(
            tiny_model,
            tiny_data,
            args={"learning_rate": 1e-3 * (number + 1), "max_steps": 4, "per_device_train_batch_size": 2},
            peft={"r": 2 * (number + 1)},
            chunks=24,
            evaluate=False,
        )
        for number in range(4)
    ]


@pytest.mark.parametrize(
    ("free", "expected"),
    [(900, [[0, 1, 2, 3]]), (600, [[0, 1], [2, 3]]), (500, [[0, 1], [2], [3]]), (0, [[0], [1], [2], [3]])],
)
def test_runs_are_divided_as_there_is_room(free: int, expected: list[list[int]]) -> None:
    """What they own and keep adds up; of what they take by their losses, one at a time, the most counts."""
    shares = {number: Share(own=10, kept=150 + 50 * (number > 1), loss=100) for number in range(4)}
    assert groups(shares, free / SHARE) == expected


def test_where_it_is_not_known_what_they_keep_all_go_together() -> None:
    assert groups({3: Share(own=10), 5: Share(own=10)}, 1e6) == [[3, 5]]


def test_where_it_cannot_be_measured_it_is_not_known(
    specs: list[RunSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And the runs train."""

    def refuse(trainer: Any) -> None:
        raise ValueError("it wants pictures, too")

    caplog.set_level(logging.INFO, logger="rfflow")
    monkeypatch.setattr("rfflow.worker.training.activations.measure", refuse)
    with prepared(specs[:1], tmp_path) as sessions:
        share = share_of(sessions[0], sessions[0]._shared)
        assert share.own > 0 and share.kept == share.loss == 0
        assert "it wants pictures, too" in sessions[0].run.paths.log.read_text()


def test_what_a_pass_keeps_is_the_sum_of_what_its_runs_keep(
    specs: list[RunSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told before the first pass, for the longest batches; also where some have begun to recompute."""
    found: list[int] = []
    forward = Trunk.forward

    def counted(self: Trunk, current: Any) -> torch.Tensor:
        sizes: dict[int, int] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            output = forward(self, current)
        found.append(sum(size for place, size in sizes.items() if place not in weights) // sum(current.sizes))
        return output

    with prepared(specs, tmp_path) as sessions:
        foreseen = 0.0
        for session in sessions.values():
            batch = longest_batch(session.coroutine.trainer)
            assert batch is not None
            foreseen += share_of(session, session._shared).kept / (batch.rows * batch.tokens) / len(sessions)
        weights = {one.untyped_storage().data_ptr() for one in sessions[0].base.model.parameters()}
        monkeypatch.setattr(Trunk, "forward", counted)
        train(sessions)
    assert max(found) == pytest.approx(foreseen, rel=0.2)


def test_those_for_whom_there_is_no_memory_go_together_behind_the_first(
    specs: list[RunSpec], tmp_path: Path, passes: list[tuple[int, ...]], caplog: pytest.LogCaptureFixture
) -> None:
    """Two by two where there is room for two, with the bits of each alone; all are at their boundaries then."""
    caplog.set_level(logging.INFO, logger="rfflow")
    with prepared(specs, tmp_path / "sizes") as sessions:
        shares = [share_of(session, session._shared) for session in sessions.values()]
    two = sum(one.own + one.kept / SHARE for one in shares[2:]) + max(one.loss for one in shares) / SHARE
    spec = ExperimentSpec(
        name="test",
        accelerator="cpu",
        fusion="slice",
        control=ControlSpec(enabled=False),
        memory=MemorySpec(device_limit=int(two + shares[0].kept / 2)),
    )
    engine = Engine(spec, ExperimentPaths(tmp_path / "experiment"))
    with outcomes() as together:
        runs = [engine.add(one, number) for number, one in enumerate(specs)]
        engine.run()
    engine.close()
    assert [run.state for run in runs] == [RunState.COMPLETED] * 4, [run.error for run in runs]
    assert passes == 2 * [(0, 1), (0, 1), (2, 3), (2, 3)]
    assert "by turns (0, 1; 2, 3)" in caplog.text
    assert caplog.text.count("by turns") == 1
    for number, one in enumerate(specs):
        assert not together[str(number)].differences(train_alone(one, tmp_path / "alone" / str(number)))


@pytest.mark.parametrize(("fusion", "most"), [("slice", 300), ("auto", 150)])
def test_what_turns_out_not_to_fit_waits_until_others_have_gone_back(
    specs: list[RunSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fusion: str, most: int
) -> None:
    """A device that holds so many tokens of passes; ``auto`` has them go one by one."""
    held, go = [], Gang._pass

    def within(self: Gang, places: Any) -> Any:
        tokens = sum(place.call.tokens for one in self._gone for place in one.places)
        tokens += sum(place.call.tokens for place in places)
        if len(places) > 1 and tokens > most:
            raise MemoryError("no room")
        held.append(len(places))
        return go(self, places)

    monkeypatch.setattr(Gang, "_pass", within)
    with prepared(specs, tmp_path) as sessions:
        together, _ = train(sessions, Choices() if fusion == "auto" else None)
    for number, one in enumerate(specs):
        outcome = together[number]
        assert not isinstance(outcome, BaseException), outcome
        assert not outcome.differences(train_alone(one, tmp_path / "alone" / str(number)))
    if fusion == "slice":
        assert held.count(2) >= 4, held
    else:
        assert not held
