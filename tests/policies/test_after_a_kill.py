"""What a policy sees is the same before and after a kill: so it asks for what it would have asked for."""

from __future__ import annotations

import contextlib
import json
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hydra.utils import instantiate

from rfflow.checkpointing import experiment_file
from rfflow.checkpointing.checkpointer import Checkpointer
from rfflow.checkpointing.checkpoints import Checkpoints
from rfflow.config.spec import CheckpointSpec, ExperimentSpec, Objective
from rfflow.engine import restoring
from rfflow.engine.engine import Engine
from rfflow.policies.scene import Decision, Scene
from rfflow.runs.activations import Activations
from rfflow.runs.chunks import ChunkPlan, ChunkResult
from rfflow.runs.experiment import Experiment
from rfflow.runs.paths import ExperimentPaths
from rfflow.runs.run import Run, RunState
from rfflow.tracking.runs_csv import RunsTable
from tests.engine.test_restoring import Disk, Killed, differences, locks_die_with_the_process, outcome
from tests.policies.test_contract import RULES
from tests.support import chance
from tests.support.toy import quick_inbox, toy_engine, toy_spec

__all__ = ["quick_inbox"]

# --- every field ------------------------------------------------------------------------------------------------------

NOT_KEPT = {"answers"}
"""Of a chunk: for people to read, and in no scene."""


def made_up(hint: Any, draw: random.Random) -> Any:
    match str(hint):
        case "<class 'int'>":
            return draw.randrange(1, 1000)
        case "<class 'float'>" | "float | None":
            return draw.random()
        case "collections.abc.Mapping[str, float]" | "dict[str, float]":
            return {name: draw.uniform(-9, 9) for name in draw.sample(["loss", "reward", "eval_loss", "a b", "ä"], 3)}
    raise AssertionError(f"Say what a {hint} is made up of, and see that it is kept.")


def made_up_chunk(draw: random.Random) -> ChunkResult:
    hints = get_type_hints(ChunkResult)
    kept = [one.name for one in fields(ChunkResult) if one.name not in NOT_KEPT]
    return ChunkResult(**{name: made_up(hints[name], draw) for name in kept})


@pytest.mark.parametrize("seed", range(5))
def test_every_field_of_a_chunk_comes_back(seed: int) -> None:
    chunk = made_up_chunk(random.Random(seed))
    run = Run(0, toy_spec(), (), ExperimentPaths("x").run(0))
    run.chunks = [chunk]
    plain = json.loads(json.dumps(experiment_file.progress_of(run)))
    assert experiment_file.chunks_from(plain["chunks"]) == [chunk]
    ended = experiment_file.RunRecord(0, RunState.COMPLETED, (), None, "runs/0", chunks=(chunk,))
    assert experiment_file.chunks_from(json.loads(experiment_file.run_text(ended))["chunks"]) == [chunk]


def save(run: Run, checkpointer: Checkpointer) -> None:
    """Do what a worker does of a run that has nothing to write."""
    order = checkpointer.save_now(run)
    assert order is not None
    checkpoints = Checkpoints(run.paths.checkpoints, checkpointer.owner(run))
    checkpoints.seal(checkpoints.begin(order.step), order.progress)


@pytest.mark.parametrize("state", RunState)
def test_every_attribute_of_a_run_comes_back(tmp_path: Path, state: RunState) -> None:
    """By its checkpoint, or by experiment.json where it has ended; an attribute that is new is missed here."""
    draw = random.Random(chance.seed())
    experiment = Experiment(ExperimentSpec("kept", checkpoint=CheckpointSpec()), ExperimentPaths(tmp_path))
    chunks = [made_up_chunk(draw) for _ in range(3)]
    is_over = state.is_final
    before: dict[str, Any] = {
        "number": 4,
        "spec": toy_spec(lr=3),
        "overrides": ("lr=3",),
        "paths": experiment.paths.run(4),
        "parent": 2,
        "first_chunk": 1,
        "is_warm": True,
        "chunks_before": 5,
        "state": RunState.RUNNING if state is RunState.QUEUED else state,
        "plan": ChunkPlan((3, 6, 9, 12), 4) if is_over else None,  # a live run's trainer counts its steps anew
        "step": chunks[-1].step,
        "metrics": made_up(dict[str, float], draw),
        "logged_at": {} if is_over else {"loss": 3, "reward": 5},  # what has ended reaches no boundary any more
        "logs": 17,
        "chunks": chunks,
        "error": None,
        "turn": None,
        "recomputes": True,
        "activations": Activations(3, "so it is", is_chosen=True),
        "is_evaluation": False,  # its spec says so
        "environ": {},  # the loggers of the process say it anew
    }
    run = Run(4, before["spec"], before["overrides"], before["paths"])
    assert before.keys() == vars(run).keys(), "say here what it is, and see that it is kept"
    vars(run).update(before)
    run.paths.root.mkdir(parents=True)
    experiment.runs.append(run)
    checkpointer = Checkpointer(experiment, lambda number: ("lr=3",))
    if not is_over:
        save(run, checkpointer)
    checkpointer.write(lambda number: 0.0)
    found = experiment_file.read(experiment.paths.state)
    assert found is not None
    (record,) = found.runs
    again = Run(record.number, before["spec"], record.overrides, experiment.paths.run(4))
    Checkpointer(experiment, lambda number: None).restore(again, record)
    after = {name: value for name, value in vars(again).items() if name != "paths"}
    assert after == {name: value for name, value in before.items() if name != "paths"}


# --- scenes -----------------------------------------------------------------------------------------------------------

PBT = [
    {"name": "done", "when": "age >= chunks", "do": "stop"},
    {"name": "exploit", "every": 1, "when": "age < chunks", "select": {"worst": "50%", "by": "reward"}, "do": "stop"},
    {
        "name": "explore",
        "every": 2,
        "when": "age < chunks and live < 6",
        "select": {"best": 1, "by": "reward"},
        "do": "clone",
        "overrides": ["lr=${parent.lr * 0.5},${parent.lr * 2}"],
        "warm_start": True,
    },
]
PBT[1]["select"]["direction"] = PBT[2]["select"]["direction"] = "maximize"  # type: ignore[index]
POLICIES: Mapping[str, Mapping[str, Any]] = {
    "halving": {"_target_": "rfflow.policies.Halving"},
    "halving, no revival": {"_target_": "rfflow.policies.Halving", "revive": False},
    "hyperband": {"_target_": "rfflow.policies.Hyperband"},
    "median": {"_target_": "rfflow.policies.Median"},
    "rules": {"_target_": "rfflow.policies.Rules", "rules": RULES},
    "pbt": {"_target_": "rfflow.policies.Rules", "rules": PBT},
    "a clone that is refused": {
        "_target_": "rfflow.policies.Rules",
        "rules": [{"name": "no", "at_chunk": 2, "do": "clone", "overrides": ["nothing=1"]}],
    },
    "a dry run": {"_target_": "rfflow.policies.Halving", "dry_run": True},
}

Moment = tuple[Any, ...]

seen: list[tuple[Moment, str]] = []
"""Every scene that the policy was shown in this process, or in those before it, and the moment that it shows."""


class Watched:
    """Another policy, and what it is shown."""

    def __init__(self, of: Mapping[str, Any]):
        self._policy = instantiate({"_target_": of["_target_"], "_partial_": True})(
            **{name: value for name, value in of.items() if name not in ("_target_", "dry_run")}
        )

    def decide(self, scene: Scene) -> Sequence[Decision]:
        moment = [(run.number, run.state, run.chunk) for run in scene.runs], scene.ops
        seen.append((moment, json.dumps(asdict(scene), sort_keys=True, default=str)))
        decisions: Sequence[Decision] = self._policy.decide(scene)
        return decisions


def experiment(root: Path, policy: Mapping[str, Any], every: int = 1) -> Engine:
    """Return a new experiment of toys, or one that goes on where ``root`` holds one."""
    node = {"_target_": f"{__name__}.Watched", "of": policy, "name": "watched", "dry_run": policy.get("dry_run", False)}
    engine = toy_engine(
        root,
        callbacks=[RunsTable()],
        checkpoint=CheckpointSpec(every=every),
        objective=Objective("reward", "maximize"),
        policy=node,
    )
    state = experiment_file.read(ExperimentPaths(root).state)
    if state is None:
        for number in range(4):
            engine.add(toy_spec(chunks=4, lr=number + 1, rewarded=True), number, (f"lr={number}",))
        return engine
    restoring.go_on(engine, state)
    for record in state.runs:
        run = engine.add(toy_spec(chunks=4, **json.loads(record.config)), record.number, record.overrides)
        restoring.take_up(engine, run, record)
    return engine


def play(root: Path, policy: Mapping[str, Any], every: int = 1) -> None:
    engine = experiment(root, policy, every)
    try:
        engine.run()
    finally:
        engine.close()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.usefixtures("quick_inbox")
def test_a_policy_sees_after_a_kill_what_it_saw_before(
    tmp_path: Path, policy: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Also what was only logged, never evaluated; and it issues the ops, and is refused what, it was without a kill."""
    seen.clear()
    with Disk() as disk, caplog.at_level(logging.INFO):
        play(tmp_path / "whole", POLICIES[policy])
    would_do = {line for line in caplog.messages if " would " in line}
    moments, whole, expected = [moment for moment, _ in seen], list(seen), outcome(tmp_path / "whole")
    draw = random.Random(chance.seed())
    for dies_at in draw.sample(range(2, disk.count), 6):
        root, every = tmp_path / str(dies_at), draw.choice([1, 2])
        seen.clear()
        caplog.clear()
        with caplog.at_level(logging.INFO):
            with Disk(dies_at), contextlib.suppress(Killed), locks_die_with_the_process():
                play(root, POLICIES[policy], every)
            play(root, POLICIES[policy], every)
        # A process that goes on may ask at one more moment, between two ops.
        others = [one for one in seen if one[0] in moments and one not in whole]
        assert not others, f"killed at operation {dies_at} of {disk.count}, a checkpoint every {every}"
        assert not differences(expected, outcome(root)), f"killed at {dies_at}, a checkpoint every {every}"
        assert {line for line in caplog.messages if " would " in line} == would_do  # of a dry run
