"""What every policy owes: the same answers for the same scene, ops that can be applied, nothing twice, nobody left."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from rfflow.config.spec import Objective
from rfflow.control.ops import Resume, Stop
from rfflow.control.selection import Numbers
from rfflow.policies import Halving, Hyperband, Median, Policy, Rules, Scene
from rfflow.policies.simulation import simulate
from tests.policies.curves import random_curves

RULES = [
    {"name": "sick", "when": "is_nan(loss) or loss > 3 * best.loss", "do": "delete"},
    {"name": "weak", "at_chunk": 2, "select": {"worst": "50%", "by": "eval_loss"}, "do": "stop"},
    {"name": "refine", "at_chunk": 4, "select": {"best": 1}, "do": "clone", "overrides": ["lr=${parent.lr * 0.5}"]},
]
POLICIES = {
    "halving": lambda: Halving(),
    "halving by 3": lambda: Halving(eta=3),
    "halving, no revival": lambda: Halving(revive=False),
    "hyperband": lambda: Hyperband(),
    "hyperband by 3": lambda: Hyperband(eta=3, chunks=9),
    "median": lambda: Median(),
    "rules": lambda: Rules(RULES),
}


@pytest.fixture(params=POLICIES)
def policy(request: pytest.FixtureRequest) -> Policy:
    return POLICIES[request.param]()


@pytest.fixture(params=[(1, 4, 0), (3, 4, 1), (16, 8, 2), (16, 9, 3), (33, 5, 4)], ids=str)
def story(request: pytest.FixtureRequest) -> list:
    runs, chunks, seed = request.param
    return random_curves(seed, runs, chunks)


def test_ops_can_be_applied_and_the_experiment_ends_with_somebody_trained(policy: Policy, story: list) -> None:
    outcome = simulate(story, policy)
    assert outcome.refused == []
    assert not any(run.is_live for run in outcome.scene.runs)
    healthy = [
        curve for curve in story if curve.fails_at is None and all(m["loss"] == m["loss"] for m in curve.metrics)
    ]
    if getattr(policy, "revive", True):  # otherwise all who went on may have failed
        assert outcome.chosen is not None and (not healthy or outcome.chosen.state == "completed")


def test_the_same_experiment_is_decided_the_same_way(policy: Policy, story: list) -> None:
    first, second = simulate(story, policy), simulate(story, policy)
    assert (first.order, first.decisions) == (second.order, second.decisions)


def test_a_policy_does_not_keep_notes(story: list, request: pytest.FixtureRequest) -> None:
    """One that is made anew at every boundary (as after a crash) decides as one that was there all the time."""
    for make in POLICIES.values():

        class Forgetful:
            def decide(self, scene: Scene, make=make):  # type: ignore[no-untyped-def]
                return make().decide(scene)

        assert simulate(story, Forgetful()).order == simulate(story, make()).order


def test_what_is_done_is_not_asked_for_again(policy: Policy, story: list) -> None:
    decided: list[tuple[str, object, object]] = []

    class Watch:
        def decide(self, scene: Scene):  # type: ignore[no-untyped-def]
            decisions = policy.decide(scene)
            decided.extend((d.op.verb, d.op.target, d.why) for d in decisions)
            return decisions

    simulate(story, Watch())
    assert len(decided) == len(set(decided))


def test_the_order_of_the_runs_in_the_scene_does_not_matter(policy: Policy, story: list) -> None:
    class Shuffled:
        def decide(self, scene: Scene):  # type: ignore[no-untyped-def]
            runs = list(scene.runs)
            random.Random(len(scene.ops)).shuffle(runs)
            decisions = policy.decide(replace(scene, runs=tuple(runs)))
            return sorted(decisions, key=lambda d: (d.op.verb, d.op.target.to_document()))

    shuffled, straight = simulate(story, Shuffled()), simulate(story, policy)
    assert {run.number: run.state for run in shuffled.scene.runs} == {
        run.number: run.state for run in straight.scene.runs
    }
    assert shuffled.spent == straight.spent


@pytest.mark.parametrize("kind", POLICIES)
def test_more_is_better_where_the_objective_says_so(kind: str) -> None:
    """Turning the sign of the metric and of the direction round changes nothing."""
    if kind == "rules":
        pytest.skip("its rules name eval_loss themselves")
    story = random_curves(7, 16, 8, trouble=False)
    turned = [
        replace(curve, metrics=tuple({"reward": -metrics["loss"]} for metrics in curve.metrics)) for curve in story
    ]
    up = simulate(turned, POLICIES[kind](), Objective("reward", "maximize"))
    assert up.order == simulate(story, POLICIES[kind]()).order


def test_a_person_wins(policy: Policy) -> None:
    """A run that a person resumed is not stopped again; one that a person stopped is not resumed."""
    story = random_curves(5, 12, 8, trouble=False)
    alone = simulate(story, policy)
    stopped = [run.number for run in alone.scene.runs if run.state == "stopped"]
    others = [run.number for run in alone.scene.runs if run.state == "completed"]
    if not stopped:
        pytest.skip("this policy stopped nobody here")
    saved, left = stopped[0], others[0]
    person = {2: [Stop(Numbers((saved,))), Stop(Numbers((left,)))], 3: [Resume(Numbers((saved,)))]}
    outcome = simulate(story, policy, person=person)
    states = {run.number: run.state for run in outcome.scene.runs}
    assert states[saved] == "completed" and states[left] == "stopped"
