"""Racing, on scenes made by hand and on permutations of known answers."""

from __future__ import annotations

import numpy as np
import pytest

from rfflow.config.spec import Objective
from rfflow.errors import ConfigError
from rfflow.evals.comparison import Candidate
from rfflow.policies import Median, Race, RunView, Scene
from rfflow.policies.simulation import Curve, simulate

LOOKS = (25, 50, 75, 100)
MAXIMIZE = Objective("eval_m", "maximize")


def view(number: int, scores: list[float | None], chunk: int, state: str = "running") -> RunView:
    seen = scores[: LOOKS[chunk - 1]] if chunk else []
    candidate = Candidate(number, seen, LOOKS, (0, 1), share=0.125) if chunk else None
    return RunView(number, state, len(LOOKS), ({},) * chunk, candidate=candidate)


def stopped(race: Race, *views: RunView, objective: Objective = MAXIMIZE) -> list[int]:
    found = race.decide(Scene(views, objective))
    return [number for decision in found for number in decision.op.target.numbers]  # type: ignore[union-attr]


GOOD: list[float | None] = [1.0] * 100
BAD: list[float | None] = [0.0] * 100


def test_who_is_surely_behind_is_stopped_when_all_are_there() -> None:
    assert stopped(Race(), view(0, GOOD, 1), view(1, BAD, 1)) == [1]
    assert stopped(Race(), view(0, GOOD, 1), view(1, BAD, 1), objective=Objective("eval_m")) == [0]
    assert stopped(Race(), view(0, GOOD, 1), view(1, BAD, 0)) == []
    assert stopped(Race(), view(0, GOOD, 1), view(1, BAD, 1, "stopped")) == []
    assert stopped(Race(), view(0, GOOD, 4), view(1, BAD, 4)) == [], "both are through"


def test_who_may_be_as_good_goes_on() -> None:
    near: list[float | None] = [0.0] * 2 + [1.0] * 98
    assert stopped(Race(), view(0, GOOD, 1), view(1, near, 1)) == []
    assert stopped(Race(margin=0.99), view(0, GOOD, 1), view(1, BAD, 1)) == []
    missing: list[float | None] = [None] * 100
    assert stopped(Race(), view(0, GOOD, 1), view(1, missing, 1)) == [], "nothing is known of it"


def test_the_best_is_hardly_ever_stopped() -> None:
    """Eight candidates of nearly the same quality, four looks: in at most one of twenty experiments."""
    generator, lost, races = np.random.default_rng(1), 0, 40
    for _ in range(races):
        answers = (generator.random((8, 100)) < np.linspace(0.55, 0.65, 8)[:, None]).astype(float)
        best = int(answers.mean(1).argmax())
        order, live = generator.permutation(100), set(range(8))
        for chunk in (1, 2, 3):
            views = [view(n, list(answers[n][order]), chunk, "running" if n in live else "stopped") for n in range(8)]
            live -= set(stopped(Race(), *views))
        lost += best not in live
    assert lost <= 4


def test_settings_that_cannot_be_are_refused() -> None:
    for given, said in (({"level": 95}, "policy.level is 95"), ({"margin": -1}, "policy.margin is -1")):
        with pytest.raises(ConfigError, match=said):
            Race(**given)  # type: ignore[arg-type]


def test_a_replay_chooses_no_early_estimate_of_one_that_had_been_stopped() -> None:
    early = Curve(0, ({"eval_m": 0.6},), candidate=Candidate(0, [1.0] * 15 + [0.0] * 10, LOOKS, (0, 1)))
    whole = Curve(1, ({"eval_m": 0.5},) * 4, candidate=Candidate(1, [1.0, 0.0] * 50, LOOKS, (0, 1)))
    for policy in (Race(), Median()):
        chosen = simulate([early, whole], policy, MAXIMIZE).chosen
        assert chosen is not None and chosen.number == 1
