"""Policies in the real engine: ops in the journal, in what callbacks hear, and under people's. Trainers only count."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rfflow.config.spec import ControlSpec, ExperimentSpec
from rfflow.control.admission import is_of_the_experiment
from rfflow.control.ops import Resume, Stop
from rfflow.control.selection import Numbers, Ranked
from rfflow.engine.engine import Engine
from rfflow.errors import ConfigError
from rfflow.policies import Decision, Scene
from rfflow.runs.experiment import Callback, Experiment
from rfflow.runs.paths import ExperimentPaths
from rfflow.runs.run import Run, RunState
from tests.support.tiny import run_spec
from tests.support.toy import ToyComposer, put, quick_inbox, toy_engine, toy_spec  # noqa: F401

HALVING = {"_target_": "rfflow.policies.Halving", "dry_run": False}
Policy = Mapping[str, Any]


class Heard(Callback):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def on_op(self, experiment: Experiment, run: Run, text: str) -> None:
        self.texts.append(text)


def engine_with(
    root: Path, policy: Policy, runs: int = 4, callbacks: Sequence[Callback] = (), **control: Any
) -> Engine:
    engine = toy_engine(root, (), callbacks, **control)
    engine.experiment.spec = replace(engine.experiment.spec, policy=policy)
    for number in range(runs):
        engine.add(toy_spec(), number)
    return engine


def play(engine: Engine) -> dict[int, tuple[str, int]]:
    engine.run()
    engine.close()
    return {run.number: (run.state.value, len(run.chunks)) for run in engine.experiment.runs}


def journal(engine: Engine) -> list[dict[str, Any]]:
    return [json.loads(line) for line in engine.experiment.paths.ops.read_text().splitlines()]


def test_halving_stops_runs_as_a_person_would(tmp_path: Path) -> None:
    """Toy losses after chunk 1: 0, 7, 3, 10; after chunk 2: 5, -, 8, -. Nobody is waited for at the end."""
    heard = Heard()
    engine = engine_with(tmp_path, HALVING, callbacks=[heard], idle_timeout=None)
    assert play(engine) == {0: ("completed", 4), 1: ("stopped", 1), 2: ("stopped", 2), 3: ("stopped", 1)}
    assert [(e["op"], e["run"], e["by"], e["chunk"], e["outcome"]) for e in journal(engine)] == [
        ("stop", 1, "policy/halving", 1, "applied"),
        ("stop", 3, "policy/halving", 1, "applied"),
        ("stop", 2, "policy/halving", 2, "applied"),
    ]
    assert heard.texts[0] == (
        "Run 1 was stopped after chunk 1 of 4, step 3. Place 3 of 4 after chunk 1; 2 go on. "
        "(policy/halving, after chunk 1)"
    )


def test_clones_of_a_policy_are_the_experiments_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is code of the experiment, so what it names is named there; a person's op may not say as much."""
    asked: list[bool] = []

    class Composer(ToyComposer):
        def compose_clone(self, parent: Run, overrides: Sequence[str], number: int, directory: Path) -> Any:
            asked.append(is_of_the_experiment())
            return super().compose_clone(parent, overrides, number, directory)

    monkeypatch.setattr("tests.support.toy.ToyComposer", Composer)
    rule = {"name": "more", "at_chunk": 1, "do": "clone", "select": {"best": 1}, "overrides": ["lr=2"], "times": 1}
    engine = engine_with(tmp_path, {"_target_": "rfflow.policies.Rules", "rules": [rule]}, runs=1)
    engine.experiment.paths.control.mkdir()
    put(engine.experiment.paths.control, "op.yaml", {"op": "clone", "run": 0, "overrides": ["lr=3"]})
    play(engine)
    assert sorted(asked) == [False, True] and not is_of_the_experiment()


def test_a_policy_needs_no_control_directory(tmp_path: Path) -> None:
    engine = engine_with(tmp_path, HALVING, enabled=False)
    assert [state for state, _ in play(engine).values()].count("completed") == 1
    assert not engine.experiment.paths.control.exists()


class At(Callback):
    """Puts op files into the control directory after so many chunks."""

    def __init__(self, when: Mapping[int, Sequence[Mapping[str, Any]]]):
        self.when = when
        self.chunks = 0

    def on_chunk_end(self, experiment: Experiment) -> None:
        self.chunks += 1
        for number, op in enumerate(self.when.get(self.chunks, ())):
            put(experiment.paths.control, f"{self.chunks:03}-{number}.yaml", op)


@pytest.mark.usefixtures("quick_inbox")
def test_a_person_wins(tmp_path: Path) -> None:
    """Run 1, which halving stopped, is resumed by a person and goes to the end; its place in the ranking stays."""
    person = At({5: [{"op": "resume", "run": 1}]})
    states = play(engine_with(tmp_path, HALVING, callbacks=[person]))
    assert states[1] == ("completed", 4) and states[3] == ("stopped", 1)


@pytest.mark.usefixtures("quick_inbox")
def test_a_person_is_first_at_the_same_boundary(tmp_path: Path) -> None:
    """Both want to stop run 3 after the first round; the person's op is the one that is applied, and it is theirs."""
    person = At({4: [{"op": "stop", "run": 3}]})
    engine = engine_with(tmp_path, HALVING, callbacks=[person])
    assert play(engine)[3] == ("stopped", 1)
    assert [(e["by"], e["run"]) for e in journal(engine)][:2] == [("person", 3), ("policy/halving", 1)]


class Contrary:
    """Wants run 1 stopped and everybody else to train, at every boundary."""

    def decide(self, scene: Scene) -> list[Decision]:
        stops = [run for run in scene.runs if run.number == 1 and run.is_live and run.chunk]
        resumes = [run for run in scene.runs if run.number != 1 and run.state == "stopped"]
        return [
            *(Decision(Stop(Numbers((run.number,))), "it is run 1") for run in stops),
            *(Decision(Resume(Numbers((run.number,))), "it is not run 1") for run in resumes),
        ]


@pytest.mark.usefixtures("quick_inbox")
def test_a_person_wins_against_a_policy_that_wants_the_opposite(tmp_path: Path) -> None:
    """Run 0 is stopped at the very boundary at which the policy would resume it; run 1 is resumed, and left alone."""
    person = At({2: [{"op": "stop", "run": 0}], 3: [{"op": "resume", "run": 1}]})
    engine = engine_with(tmp_path, {"_target_": f"{__name__}.Contrary"}, runs=3, callbacks=[person])
    assert play(engine) == {0: ("stopped", 1), 1: ("completed", 4), 2: ("completed", 4)}
    assert [(entry["op"], entry["run"], entry["by"]) for entry in journal(engine)] == [
        ("stop", 0, "person"),
        ("stop", 1, "policy/contrary"),
        ("resume", 1, "person"),
    ]


@pytest.mark.usefixtures("quick_inbox")
@pytest.mark.parametrize("how", ["fails", "stop", "delete"])
def test_the_next_best_goes_on_where_a_better_one_leaves(tmp_path: Path, how: str) -> None:
    """After chunk 2 losses are 5, 1, 8, 4, so runs 1 and 3 go on; run 1 is lost after that, and run 0 follows it."""
    person = At({} if how == "fails" else {9: [{"op": how, "run": 1}]})
    engine = engine_with(tmp_path, {**HALVING, "min_chunks": 2}, runs=0, callbacks=[person])
    for number in range(4):
        engine.add(toy_spec(**({"fails_at": 2} if (number, how) == (1, "fails") else {})), number)
    lost = {"fails": ("failed", 2), "stop": ("stopped", 3), "delete": ("deleted", 3)}[how]
    assert play(engine) == {0: ("completed", 4), 1: lost, 2: ("stopped", 2), 3: ("completed", 4)}
    (resumed,) = [entry for entry in journal(engine) if entry["op"] == "resume"]
    assert (resumed["run"], resumed["by"]) == (0, "policy/halving")
    assert "Place 3 of 4 after chunk 2; 2 go on, and a better one left." in resumed["detail"]


def test_rules_clone_with_values_of_the_parent(tmp_path: Path) -> None:
    rule = {"name": "refine", "at_chunk": 2, "select": {"best": 1}, "do": "clone", "overrides": ["lr=${parent.lr * 4}"]}
    engine = engine_with(tmp_path, {"_target_": "rfflow.policies.Rules", "rules": [rule]}, runs=2)
    assert play(engine) == {0: ("completed", 4), 1: ("completed", 4), 2: ("completed", 4)}
    clone = engine.experiment.run(2)
    assert (clone.parent, clone.spec.config["lr"]) == (1, 4)
    (entry,) = journal(engine)
    assert entry["by"] == "policy/rules/refine" and "Rule refine, best 1, after chunk 2." in entry["detail"]


def test_a_dry_run_only_says_what_it_would_do(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It imagines its own ops: what it would have stopped is not ranked again at the next rung."""
    engine = engine_with(tmp_path, {**HALVING, "dry_run": True})
    with caplog.at_level(logging.INFO, "rfflow"):
        assert set(play(engine).values()) == {("completed", 4)}
    said = [message for message in caplog.messages if "would" in message]
    assert said == [
        "Policy halving would stop run 1: place 3 of 4 after chunk 1; 2 go on.",
        "Policy halving would stop run 3: place 4 of 4 after chunk 1; 2 go on.",
        "Policy halving would stop run 2: place 2 of 2 after chunk 2; 1 go on.",
    ]
    assert not engine.experiment.paths.ops.exists()


class Stubborn:
    """Asks for the impossible at every boundary, and for a selection."""

    def decide(self, scene: Scene) -> list[Decision]:
        wanted = [Decision(Stop(Numbers((77,))), "why not")]
        if all(run.chunk for run in scene.runs) and not scene.ops:
            wanted.append(Decision(Stop(Ranked("worst", 1)), "it is the worst"))
        return wanted


class Broken:
    def decide(self, scene: Scene) -> list[Decision]:
        raise ZeroDivisionError("a bug")


def test_a_policy_of_ones_own_is_named_by_its_target(tmp_path: Path) -> None:
    engine = engine_with(tmp_path, {"_target_": f"{__name__}.Stubborn"}, runs=2)
    assert play(engine) == {0: ("completed", 4), 1: ("stopped", 1)}
    assert [(e["by"], e["outcome"]) for e in journal(engine)] == [
        ("policy/stubborn", "refused"),
        ("policy/stubborn", "applied"),
    ]


def test_a_policy_that_raises_is_switched_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert set(play(engine_with(tmp_path, {"_target_": f"{__name__}.Broken"})).values()) == {("completed", 4)}
    assert caplog.text.count("The policy broken failed and is off from now on.") == 1


@pytest.mark.parametrize(
    "policy, said",
    [
        ({"_target_": "rfflow.policies.Halving", "eta": 1}, "policy.eta is 1"),
        ({"_target_": "rfflow.policies.Halving", "etta": 2}, "etta"),
        ({"_target_": "rfflow.policies.Hafling"}, "Hafling"),
        ({"_target_": "collections.Counter"}, "has no method decide"),
        ({"_target_": "rfflow.policies.Rules", "rules": [{"name": "x", "when": "loss >", "do": "stop"}]}, "Rule 'x'"),
        (
            {
                "_target_": "rfflow.policies.Rules",
                "rules": [{"at_chunk": 1, "do": "clone", "overrides": ["lr=${parent.lrr}"]}],
            },
            "'lrr'",
        ),
        ({**HALVING, "dry_run": 1}, "policy.dry_run is 1"),
    ],
)
def test_a_wrong_policy_is_said_before_training(tmp_path: Path, policy: Policy, said: str) -> None:
    engine = engine_with(tmp_path, policy)
    with pytest.raises(ConfigError) as error:
        engine.run()
    assert said in str(error.value)
    assert all(run.state is RunState.QUEUED for run in engine.experiment.runs)


def test_a_metric_that_a_rule_misspells_is_said_before_training(
    tmp_path: Path, tiny_model: Path, tiny_data: Path
) -> None:
    rule = {"name": "sick", "when": "mean_token_acuracy < 0.1", "do": "stop"}
    spec = ExperimentSpec(
        "tiny",
        accelerator="cpu",
        control=ControlSpec(enabled=False),
        policy={"_target_": "rfflow.policies.Rules", "rules": [rule]},
    )
    engine = Engine(spec, ExperimentPaths(tmp_path))
    engine.add(run_spec(tiny_model, tiny_data), 0)
    with pytest.raises(ConfigError, match=r"Rule 'sick' reads .* Did you mean 'mean_token_accuracy'"):
        engine.run()
    engine.close()
    assert engine.experiment.run(0).step == 0
