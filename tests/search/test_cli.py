"""Searches and policies as people type them; the engine behind them trains nothing here."""

from __future__ import annotations

import pytest

from rfflow.config.spec import Objective
from rfflow.policies.runner import make_policy
from tests.launch.test_cli import Shell, rfflow  # noqa: F401

pytestmark = pytest.mark.usefixtures("hydra_restore_singletons")


@pytest.mark.parametrize("search", ["random", "tpe", "gp", "cmaes", "nsga2"])
def test_a_search_is_chosen_by_its_name(rfflow: Shell, search: str) -> None:  # noqa: F811
    space = ["lr=tag(log,interval(1e-5,1e-2))", "chunks=range(2,9,step=2)"]
    out = rfflow("+recipe=sft", "--multirun", f"search={search}", "search.n_trials=3", *space)
    assert rfflow.status == 0, out
    assert len(set(rfflow.labels)) == 3
    rates = [run.spec.config["lr"] for engine in rfflow.engines for run in engine.runs]
    assert all(1e-5 <= rate < 1e-2 for rate in rates)


def test_what_a_search_weighs_belongs_to_the_experiment(rfflow: Shell) -> None:  # noqa: F811
    """So that its metrics are looked for before training."""
    objectives = "search.objectives=[{metric: eval_loss},{metric: eval_rouge_l,direction: maximize}]"
    out = rfflow("+recipe=sft", "--multirun", "search=nsga2", "search.n_trials=2", objectives, "lr=interval(1e-5,1e-2)")
    assert rfflow.status == 0, out
    assert rfflow.engines[0].spec.searched == (Objective("eval_loss"), Objective("eval_rouge_l", "maximize"))


def test_a_sampler_of_optunas_is_named_by_its_target(rfflow: Shell) -> None:  # noqa: F811
    base = "{_target_: optuna.samplers.RandomSampler, seed: 1}"
    sampler = f"{{_target_: optuna.samplers.PartialFixedSampler, fixed_params: {{lr: 0.003}}, base_sampler: {base}}}"
    search = ["search=tpe", "search.n_trials=2", f"search.sampler={sampler}"]
    out = rfflow("+recipe=sft", "--multirun", *search, "lr=interval(1e-5,1e-2)", "chunks=choice(2,3)")
    assert rfflow.status == 0, out
    assert sorted(rfflow.labels) == ["lr=0.003 chunks=2", "lr=0.003 chunks=3"]


def test_groups_can_be_searched(rfflow: Shell) -> None:  # noqa: F811
    out = rfflow("+recipe=sft", "--multirun", "search=random", "search.n_trials=3", "peft=choice(lora,lora_small,none)")
    assert rfflow.status == 0, out
    assert sorted(rfflow.labels) == ["peft=lora", "peft=lora_small", "peft=none"]


@pytest.mark.parametrize("policy", ["halving", "hyperband", "median", "pbt"])
def test_a_policy_is_chosen_by_its_name(rfflow: Shell, policy: str) -> None:  # noqa: F811
    out = rfflow("+recipe=sft", "--multirun", f"policy={policy}", "policy.dry_run=true", "lr=1e-3,1e-4")
    assert rfflow.status == 0, out
    node = rfflow.engines[0].spec.policy
    assert node is not None
    made, name, is_dry = make_policy(node)
    assert name == ("rules" if policy == "pbt" else policy) and is_dry
    assert callable(made.decide)


def test_a_policy_of_ones_own(rfflow: Shell) -> None:  # noqa: F811
    target = "tests.policies.test_steering.Stubborn"
    out = rfflow("+recipe=sft", "--multirun", f"+policy._target_={target}", "lr=1e-3,1e-4")
    assert rfflow.status == 0, out
    node = rfflow.engines[0].spec.policy
    assert node is not None and make_policy(node)[1] == "stubborn"


def test_a_policy_that_does_not_exist_is_said(rfflow: Shell) -> None:  # noqa: F811
    assert "halving" in rfflow("+recipe=sft", "--multirun", "policy=halve", "lr=1e-3,1e-4")
    assert rfflow.status == 1
