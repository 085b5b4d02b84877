"""``engine.fusion``: runs of an experiment go together by themselves, and nobody can tell by what comes of them."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from rfflow.config.spec import CheckpointSpec, ControlSpec, ExperimentSpec, RunSpec
from rfflow.engine.engine import Engine
from rfflow.runs.paths import ExperimentPaths
from rfflow.runs.run import Run, RunState
from rfflow.worker.gangs.gang import Gang
from tests.support.plain import Outcome, train_alone
from tests.support.tiny import run_spec
from tests.worker.training.test_exactness import outcomes


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Collect which runs went forward in one pass."""
    found: list[tuple[int, ...]] = []
    go = Gang._pass

    def note(self: Gang, places: object) -> object:
        found.append(tuple(sorted(place.run for place in places)))  # type: ignore[attr-defined]
        return go(self, places)  # type: ignore[arg-type]

    monkeypatch.setattr(Gang, "_pass", note)
    return found


def make_engine(root: Path) -> Engine:
    spec = ExperimentSpec(
        name="test",
        accelerator="cpu",
        fusion="slice",
        control=ControlSpec(enabled=False),
        checkpoint=CheckpointSpec(every=1),
    )
    return Engine(spec, ExperimentPaths(root))


def train(specs: list[RunSpec], root: Path) -> tuple[list[Run], dict[str, Outcome]]:
    engine = make_engine(root)
    with outcomes() as collected:
        runs = [engine.add(spec, number) for number, spec in enumerate(specs)]
        engine.run()
    engine.close()
    return runs, collected


def test_what_qualifies_goes_together_and_the_rest_beside(
    tiny_model: Path,
    tiny_data: Path,
    tmp_path: Path,
    passes: list[tuple[int, ...]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One of them fails, one is DoRA and one trains every weight; all others end as alone, with evaluations."""
    caplog.set_level(logging.INFO, logger="rfflow")

    def spec(**kwargs: object) -> RunSpec:
        dataset = {"eval_path": str(tiny_data)}
        return run_spec(tiny_model, tiny_data, chunks=2, evaluate=True, dataset=dataset, **kwargs)  # type: ignore[arg-type]

    args = {"max_steps": 6}
    specs = [
        spec(args=args),
        spec(args={**args, "learning_rate": 1e-3}, peft={"r": 8, "target_modules": "all-linear"}),
        spec(args=args),
        spec(args=args, peft={"use_dora": True}),
        spec(args={"max_steps": 2}, peft=None),
    ]
    fails = {"_target_": "tests.worker.training.test_exactness.FailAt", "step": 2}
    specs[2] = replace(specs[2], trainer=replace(specs[2].trainer, callbacks=(fails,)))
    runs, together = train(specs, tmp_path / "experiment")
    assert [run.state for run in runs] == [RunState.COMPLETED] * 2 + [RunState.FAILED] + [RunState.COMPLETED] * 2
    assert (0, 1, 2) in passes
    assert set().union(*passes) == {0, 1, 2}
    for number in (0, 1, 3, 4):
        alone = train_alone(specs[number], tmp_path / "alone" / str(number))
        assert not together[str(number)].differences(alone), number
    assert "alone: peft.use_dora" in runs[3].paths.log.read_text()
