"""Which runs an op turns out to mean."""

import math
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from rfflow.config.spec import Objective
from rfflow.control.ops import Clone, Delete, Resume, Stop, parse
from rfflow.control.selection import Everything, Numbers, Ranked, select, spans
from rfflow.errors import OpError


@dataclass
class Candidate:
    number: int
    word: str = "running"
    metrics: dict = field(default_factory=dict)

    @property
    def state(self):
        return SimpleNamespace(value=self.word)


def runs(*losses, states=()):
    made = [Candidate(n, metrics={} if loss is None else {"eval_loss": loss}) for n, loss in enumerate(losses)]
    for run, word in zip(made, states, strict=False):
        run.word = word
    return made


LOSS = Objective()


def test_numbers_keep_the_order_given():
    assert select(Stop(Numbers((2, 0))), runs(1, 2, 3), LOSS) == (2, 0)


def test_a_missing_run_is_named_with_those_there_are():
    with pytest.raises(OpError, match=r"Cannot clone run 7: no such run. Runs: 0-2."):
        select(Clone(Numbers((1, 7)), ("lr=1",)), runs(1, 2, 3), LOSS)


@pytest.mark.parametrize(
    ("op", "state"),
    [
        (Stop, "stopped"),
        (Stop, "completed"),
        (Resume, "running"),
        (Resume, "failed"),
        (Delete, "deleted"),
        (Clone, "deleted"),
    ],
)
def test_an_illegal_step_is_refused_for_the_whole_op(op, state):
    with pytest.raises(OpError, match=f"Cannot {op.verb} run 1: it is {state}. A run to {op.verb} is"):
        select(op(Numbers((0, 1))), runs(1, 2, states=[op.acts_on[0], state]), LOSS)


def test_all_means_those_that_the_op_can_act_on():
    some = runs(1, 2, 3, 4, states=["running", "stopped", "completed", "deleted"])
    assert select(Stop(Everything()), some, LOSS) == (0,)
    assert select(Resume(Everything()), some, LOSS) == (1,)
    assert select(Clone(Everything(), ("lr=1",)), some, LOSS) == (0, 1, 2)
    assert select(Delete(Everything()), some, LOSS) == (0, 1, 2)


def test_nobody_to_act_on_is_a_refusal_that_says_how_the_runs_stand():
    with pytest.raises(OpError, match=r"No run can be resumed.*Runs: 0-1 running, 2 completed."):
        select(Resume(Everything()), runs(1, 2, 3, states=["running", "running", "completed"]), LOSS)


def test_best_and_worst_follow_the_objective():
    some = runs(3, 1, 2)
    assert select(Stop(Ranked("best", 2)), some, LOSS) == (1, 2)
    assert select(Stop(Ranked("worst", 2)), some, LOSS) == (0, 2)
    upward = Objective("eval_loss", "maximize")
    assert select(Stop(Ranked("best", 2)), some, upward) == (0, 2)
    assert select(Stop(Ranked("best", 1, direction="minimize")), some, upward) == (1,)


def test_best_chooses_among_the_runs_that_the_op_can_act_on():
    some = runs(1, 2, 3, states=["completed", "running", "running"])
    assert select(Stop(Ranked("best", 1)), some, LOSS) == (1,)
    assert select(Clone(Ranked("best", 1), ("lr=1",)), some, LOSS) == (0,)


def test_ties_go_by_number_at_both_ends():
    assert select(Stop(Ranked("best", 2)), runs(1, 1, 1), LOSS) == (0, 1)
    assert select(Stop(Ranked("worst", 2)), runs(1, 1, 1), LOSS) == (0, 1)


def test_a_diverged_run_is_the_worst_and_a_run_without_the_metric_comes_last():
    some = runs(None, 5, math.nan, 1)
    assert select(Stop(Ranked("worst", 4)), some, LOSS) == (2, 1, 3, 0)
    assert select(Stop(Ranked("best", 4)), some, LOSS) == (3, 1, 2, 0)


@pytest.mark.parametrize(
    ("end", "percent", "count", "taken"),
    [
        ("worst", 50, 5, 2),
        ("best", 50, 5, 3),
        ("worst", 50, 4, 2),
        ("best", 1, 5, 1),
        ("best", 29, 100, 29),
        ("worst", 29, 100, 29),
    ],
)
def test_a_share_rounds_up_for_best_and_down_for_worst(end, percent, count, taken):
    assert len(select(Stop(Ranked(end, percent=percent)), runs(*range(count)), LOSS)) == taken


def test_half_of_one_run_is_nobody():
    with pytest.raises(OpError, match="less than one of the 1 that can be stopped"):
        select(Stop(Ranked("worst", percent=50)), runs(1), LOSS)


def test_more_than_there_are_is_refused():
    """Runs may have completed since the person counted them; stopping all that is left is not what was meant."""
    with pytest.raises(OpError, match=r"only 2 can be stopped \(0, 2\)"):
        select(Stop(Ranked("worst", 3)), runs(1, 2, 3, states=["running", "completed", "running"]), LOSS)


def test_a_metric_that_nobody_logged_is_refused_with_the_nearest():
    with pytest.raises(OpError, match=r"by eval_los: none of the runs 0-1 has logged it. Did you mean 'eval_loss'"):
        select(Stop(Ranked("best", 1, by="eval_los", direction="minimize")), runs(1, 2), LOSS)


def test_another_metric_needs_its_direction_unless_it_is_a_loss():
    some = [Candidate(0, metrics={"acc": 0.1, "loss": 2}), Candidate(1, metrics={"acc": 0.9, "loss": 3})]
    assert select(Stop(Ranked("best", 1, by="loss")), some, Objective("acc", "maximize")) == (0,)
    assert select(Stop(Ranked("best", 1, by="acc", direction="maximize")), some, LOSS) == (1,)
    with pytest.raises(OpError, match="say direction: minimize or maximize"):
        select(Stop(Ranked("best", 1, by="acc")), some, LOSS)


def test_the_training_loss_stands_in_for_a_missing_evaluation():
    some = [Candidate(0, metrics={"loss": 2.0}), Candidate(1, metrics={"loss": 1.0})]
    assert select(parse({"op": "stop", "run": {"best": 1}}), some, LOSS) == (1,)


def test_spans():
    assert spans([5, 0, 2, 1, 7]) == "0-2, 5, 7"
    assert spans([]) == ""
