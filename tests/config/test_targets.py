"""Misspelt arguments beside a ``_target_`` are answered with the nearest, before anything is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from rfflow.config.spec import ExperimentSpec
from rfflow.config.targets import check_arguments, instantiate_values, resolve_function
from rfflow.engine.callbacks import make_fabric
from rfflow.errors import ConfigError
from rfflow.policies.runner import make_policy
from rfflow.search.samplers import SearchSpec, make_sampler
from rfflow.worker.rewards.functions import load_rewards


def _refused(call: Callable[[], object]) -> str:
    with pytest.raises(ConfigError) as error:
        call()
    return str(error.value)


def test_the_key_the_value_and_what_there_is_are_said() -> None:
    """As for TRL's own arguments."""
    node = {"_target_": "recipes.sft.format.to_chat", "max_charcters": 200}
    assert _refused(lambda: resolve_function(node, "dataset.formatting_func")) == (
        "dataset.formatting_func.max_charcters is 200, but recipes.sft.format.to_chat takes no 'max_charcters'. Did "
        "you mean 'max_characters'? Its arguments: row, system, max_characters."
    )


def test_an_argument_of_another_function_can_be_taken_out() -> None:
    """A recipe's own stay when its function is replaced by another."""
    node = {"_target_": "json.loads", "max_characters": 200}
    said = _refused(lambda: check_arguments(lambda row: row, node, "dataset.formatting_func"))
    assert "To take it out: ~dataset.formatting_func.max_characters" in said and "Its arguments: row." in said


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda: load_rewards({"_target_": "rfflow.rewards.correct_answer", "rewards": 1.0}),
            "trainer.reward_funcs[0].rewards is 1.0, but rfflow.rewards.correct_answer takes no 'rewards'. Did you "
            "mean 'reward'",
        ),
        (
            lambda: make_policy({"_target_": "rfflow.policies.Halving", "min_chunk": 2}),
            "policy.min_chunk is 2, but rfflow.policies.Halving takes no 'min_chunk'. Did you mean 'min_chunks'",
        ),
        (
            lambda: make_sampler(SearchSpec({"_target_": "optuna.samplers.RandomSampler", "sed": 1})),
            "search.sampler.sed is 1, but optuna.samplers.RandomSampler takes no 'sed'. Did you mean 'seed'",
        ),
        (
            lambda: make_fabric(
                ExperimentSpec(
                    name="test", callbacks={"table": {"_target_": "rfflow.tracking.table.LiveTable", "consol": None}}
                )
            ),
            "callbacks.table.consol is None, but rfflow.tracking.table.LiveTable takes no 'consol'. Did you mean",
        ),
        (
            lambda: instantiate_values({"b": {"_target_": "fractions.Fraction", "numrator": 3}}, "model"),
            "model.b.numrator is 3, but fractions.Fraction takes no 'numrator'. Did you mean 'numerator'",
        ),
    ],
)
def test_whoever_makes_something_says_so(call: Callable[[], object], said: str) -> None:
    """Rewards, policies, samplers, callbacks, values."""
    assert said in _refused(call)


def test_what_takes_any_keyword_is_given_it() -> None:
    """And a function that cannot be looked into; but ``**_`` is for those that nobody reads."""

    def takes(completions: Any, **options: Any) -> None: ...

    def passes_over(completions: Any, **_: Any) -> None: ...

    node = {"_target_": "f", "word": 1, "_partial_": True}
    check_arguments(takes, node, "where")
    check_arguments(dict, node, "where")
    assert "Its arguments: completions" in _refused(lambda: check_arguments(passes_over, node, "where"))
