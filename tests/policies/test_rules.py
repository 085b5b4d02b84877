from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from rfflow.config.spec import Objective
from rfflow.control.ops import Clone
from rfflow.errors import ConfigError
from rfflow.policies import Rules, RunView, Scene
from rfflow.policies.simulation import Curve, simulate
from tests.policies.curves import NAN, curves


def rules(*documents: dict[str, Any]) -> Rules:
    return Rules(documents)


WEAK = {"name": "weak", "at_chunk": 2, "select": {"worst": "50%", "by": "eval_loss"}, "do": "stop"}
SICK = {"name": "sick", "when": "loss > 3 * best.loss", "do": "delete"}
REFINE = {
    "name": "refine",
    "at_chunk": 3,
    "select": {"best": 1},
    "do": "clone",
    "overrides": ["lr=${parent.lr * 0.5}"],
    "warm_start": True,
}


def test_the_rules_of_the_readme() -> None:
    """The worst half stops after chunk 2, the sick one is deleted at once, the best is cloned with half its rate."""
    outcome = simulate(curves([1] * 4, [2] * 4, [1.5] * 4, [2.5] * 4, [9] * 4), rules(WEAK, SICK, REFINE))
    states = {run.number: (run.state, run.chunk) for run in outcome.scene.runs}
    assert states[4] == ("deleted", 1)
    # Ranked with the deleted one left out of nothing: it never came to chunk 2.
    assert [states[run] for run in (0, 1, 2, 3)] == [
        ("completed", 4),
        ("stopped", 2),
        ("completed", 4),
        ("stopped", 2),
    ]
    (clone,) = [d.op for d in outcome.decisions if isinstance(d.op, Clone)]
    assert (clone.overrides, clone.warm_start) == (("lr=0.5",), True)
    assert outcome.scene.runs[5].parent == 0 and outcome.scene.runs[5].age == 3 + 4
    assert {d.why for d in outcome.decisions if d.rule == "weak"} == {
        "rule weak, worst 50.0% by eval_loss, after chunk 2"
    }


def test_a_diverged_run_can_be_named() -> None:
    outcome = simulate(curves([1, 1], [NAN, NAN]), rules({**SICK, "when": "is_nan(loss)"}))
    assert [run.state for run in outcome.scene.runs] == ["completed", "deleted"]


def test_a_plateau_is_seen_by_the_chunk_before() -> None:
    flat = {"name": "flat", "when": "chunk >= 2 and eval_loss > previous.eval_loss - 0.1", "do": "stop"}
    outcome = simulate(curves([4, 3, 2, 1], [4, 3, 2.95, 2.94]), rules(flat))
    assert [(run.state, run.chunk) for run in outcome.scene.runs] == [("completed", 4), ("stopped", 3)]


def test_a_rule_clones_once_and_never_its_own_clones() -> None:
    good = {"name": "good", "when": "eval_loss < 2", "do": "clone", "overrides": ["lr=1"]}
    outcome = simulate(curves([1] * 3, [1.5] * 3, [3] * 3), rules(good))
    assert [run.parent for run in outcome.scene.runs] == [None, None, None, 0, 1]


def test_times_limits_a_rule() -> None:
    stop = {"name": "stop", "when": "chunk == 1", "do": "stop", "times": 2}
    outcome = simulate(curves(*[[1] * 3] * 4), rules(stop))
    assert [run.state for run in outcome.scene.runs].count("stopped") == 2


def test_population_based_training_is_a_file_of_rules() -> None:
    """At every second chunk the worst quarter makes room for children of the best; the lineages end like anybody."""
    shipped = OmegaConf.to_container(OmegaConf.load(Path(__file__).parents[2] / "conf/policy/pbt.yaml"), resolve=True)
    outcome = simulate(curves(*[[1 + run / 10] * 8 for run in range(8)]), Rules(shipped["rules"]))
    runs = outcome.scene.runs
    assert len(runs) > 8 and outcome.refused == []
    assert all(run.age <= 8 for run in runs) and not any(run.is_live for run in runs)
    assert {run.parent for run in runs if run.parent is not None} & {0, 1}
    rates = {run.config["lr"] for run in runs if run.parent == 0}
    assert rates <= {0.8, 1.25} and rates


def test_who_made_room_is_not_cloned_when_the_leaders_have_gone_on() -> None:
    """A rule that asks for the age asks for the age at its chunk, however old the best have grown since."""
    shipped = OmegaConf.to_container(OmegaConf.load(Path(__file__).parents[2] / "conf/policy/pbt.yaml"), resolve=True)
    outcome = simulate(curves(*[[1 + run / 10] * 4 for run in range(4)]), Rules(shipped["rules"]))
    acted = {(decision.rule, *decision.op.target.numbers) for decision in outcome.decisions}
    assert acted == {("exploit", 3), ("explore", 0), ("done", 4), ("done", 5)}
    assert [run.parent for run in outcome.scene.runs] == [None] * 4 + [0, 0]


@pytest.mark.parametrize(
    "change, said",
    [
        ({"do": "stopp"}, "Did you mean 'stop'"),
        ({"selct": 1}, "Did you mean 'select'"),
        ({"when": "loss >"}, "is not an expression"),
        ({"when": 3}, "an expression in quotes"),
        ({"at_chunk": 0}, "Allowed: a whole number from 1 up"),
        ({"at_chunk": 2, "every": 1}, "both at_chunk and every"),
        ({"at_chunk": None, "when": "loss > 3"}, "say at_chunk or every"),
        ({"at_chunk": None, "select": "all"}, "neither at_chunk, every nor when"),
        ({"select": {"wurst": 1}}, "select"),
        ({"select": 3}, "Allowed: all"),
        ({"overrides": ["lr=1"]}, "belong to do: clone"),
        ({"do": "clone"}, "the clone would repeat its parent"),
        ({"do": "clone", "overrides": ["lr"]}, "not in Hydra's grammar"),
        ({"do": "clone", "overrides": ["engine.device=1"]}, "which all runs share"),
        ({"do": "clone", "overrides": ["lr=${parent.lr *}"]}, "is not an expression"),
        ({"do": "clone", "overrides": ["lr=1"], "at_chunk": None, "every": 1, "select": "all"}, "clone for ever"),
        ({"name": "a/b"}, "no slash"),
    ],
)
def test_a_wrong_rule_is_named_before_training(change: dict[str, Any], said: str) -> None:
    document = {key: value for key, value in {**WEAK, **change}.items() if value is not None}
    with pytest.raises(ConfigError, match="Rule '") as error:
        rules(document)
    assert said in str(error.value)


def test_a_template_that_no_configuration_can_fill_is_found_before_training() -> None:
    refine = rules({**REFINE, "overrides": ["lr=${parent.lrr * 2}"]})
    with pytest.raises(ConfigError, match=r"'lrr'.*Did you mean 'lr'"):
        refine.check([RunView(0, "queued", 4, config={"lr": 1})])
    rules(REFINE).check([RunView(0, "queued", 4, config={"lr": 1})])


@pytest.mark.parametrize(
    "rule, said",
    [
        (
            {**SICK, "when": "eval_los > 3"},
            "Rule 'sick' did not act, 'eval_los > 3': run 0 has no 'eval_los'. Did you mean 'eval_loss'? "
            "It has logged: eval_loss.",
        ),
        (
            {**SICK, "when": "best.los > 3"},
            "Rule 'sick' did not act, 'best.los > 3': run 0 has no 'los'. Did you mean 'loss'? It has logged: loss.",
        ),
        (
            {**WEAK, "select": {"worst": "50%", "by": "eval_los"}},
            "Rule 'weak' did not act, \"{'worst': '50.0%', 'by': 'eval_los'}\": Is a high eval_los good or bad? "
            "The objective is eval_loss, so say direction: minimize or maximize.",
        ),
        (
            {**WEAK, "select": {"worst": "50%", "by": "my_loss"}},
            "Rule 'weak' did not act, \"{'worst': '50.0%', 'by': 'my_loss'}\": Cannot stop the worst by my_loss: "
            "none of the runs 0-1 has logged it. Did you mean 'loss' or 'eval_loss'? Metrics seen: eval_loss, loss.",
        ),
    ],
)
def test_a_metric_that_nobody_logs_is_said_once(
    caplog: pytest.LogCaptureFixture, rule: dict[str, Any], said: str
) -> None:
    with caplog.at_level(logging.WARNING):
        simulate(curves([1] * 3, [2] * 3), rules(rule))
    assert [record.getMessage() for record in caplog.records] == [said]


@pytest.mark.parametrize(
    "when, holds_for",
    [
        ("loss > 3", (0,)),
        ("eval_loss == 2", (1,)),
        ("lr == 0.1", (0, 2)),
        ("peft.r == 16", (1,)),
        ("chunk == 1", (2,)),
        ("chunk == chunks", ()),
        ("chunks == 4", (0, 1, 2)),
        ("age == 3", (2,)),  # two of its parent's chunks, and its own
        ("number == 1", (1,)),
        ("live == 3", (0, 1, 2)),
        ("best.number == 1", (0, 1)),  # at chunk 2 run 1 leads
        ("best.number == 2", (2,)),  # and at chunk 1 the clone
        ("loss > 1.5 * best.loss and best.peft.r == 16", (0,)),
        ("previous.loss > loss", (1,)),
        ("origin.number == 0 and origin.lr == 0.1 and origin.chunk == 2", (2,)),
        ("metric('rewards/margins') < metric('best.rewards/margins')", (0,)),
    ],
)
def test_every_name_has_its_value(when: str, holds_for: tuple[int, ...]) -> None:
    def run(number: int, *losses: float, r: int = 8, **of_a_clone: Any) -> RunView:
        history = tuple({"loss": loss, "eval_loss": loss, "rewards/margins": -loss} for loss in losses)
        config = {"lr": 0.1 if r == 8 else 0.2, "peft": {"r": r}}
        return RunView(number, "running", 4, history, config, **{"age": len(losses), **of_a_clone})

    scene = Scene((run(0, 4, 4), run(1, 3, 2, r=16), run(2, 1, parent=0, age=3)), Objective())
    asked = rules({"name": "asks", "when": when, "do": "stop"}).decide(scene)
    assert tuple(decision.op.target.numbers[0] for decision in asked) == holds_for


def test_what_is_not_there_yet_is_no_mistake(caplog: pytest.LogCaptureFixture) -> None:
    """The chunk before the first, the run that an original was made from, an evaluation still to come."""
    late = [Curve(0, ({"loss": 1}, {"loss": 1, "eval_loss": 1}))]
    asks = rules(
        {"name": "flat", "when": "loss > previous.loss", "do": "stop"},
        {"name": "child", "when": "loss > origin.loss", "do": "stop"},
        {"name": "half", "at_chunk": 1, "when": "eval_loss > 2", "do": "stop"},
        {"name": "few", "at_chunk": 1, "select": {"worst": "50%"}, "do": "stop"},
    )
    with caplog.at_level(logging.WARNING):
        assert simulate(late, asks).decisions == []
    assert caplog.records == []


def test_rules_say_which_metrics_they_read() -> None:
    made = rules(
        {**SICK, "when": "los > 3 * best.loss and chunk > 1 and live > 2 and lr > 0"},
        {**REFINE, "overrides": ["lr=${parent.lr * previous.eval_loss}", "peft.r=${parent.peft.r}"]},
        {"name": "high", "when": "metric('best.rewards/margins') > 1", "do": "stop"},
        {"name": "low", "at_chunk": 1, "select": {"worst": 1, "by": "eval_rouge_l"}, "do": "stop"},
        {"name": "weak", "at_chunk": 1, "select": {"worst": 1, "by": "eval_loss"}, "do": "stop"},
        {"name": "half", "at_chunk": 1, "select": {"worst": "50%"}, "do": "stop"},
    )
    runs = [RunView(0, "queued", 4, config={"lr": 1, "peft": {"r": 8}})]
    assert made.reads(runs) == {
        "los": "Rule 'sick'",
        "loss": "Rule 'sick'",
        "eval_loss": "Rule 'refine'",
        "rewards/margins": "Rule 'high'",
        "eval_rouge_l": "Rule 'low'",
    }


def test_a_policy_of_the_configuration_is_a_file_of_rules_too() -> None:
    made = Rules(file=str(Path(__file__).parents[2] / "conf/policy/pbt.yaml"))
    assert [rule.name for rule in made.rules] == ["done", "exploit", "explore"]
    assert [template.text for template in made.rules[-1].overrides] == ["lr=${parent.lr * 0.8},${parent.lr * 1.25}"]


def test_files_and_lists_go_together(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text('rules:\n- {name: sick, when: "loss > 3", do: delete}\n')
    assert [rule.name for rule in Rules([WEAK], str(file)).rules] == ["weak", "sick"]
    with pytest.raises(ConfigError, match="Two rules are called 'weak'"):
        Rules([WEAK, WEAK])
    with pytest.raises(ConfigError, match=r"policy\.rules is empty"):
        Rules()
    with pytest.raises(ConfigError, match="cannot be read"):
        Rules(file=str(tmp_path / "none.yaml"))
