"""Which overrides tell the runs of a sweep apart."""

from __future__ import annotations

import pytest

from rfflow.overrides import setting_apart


@pytest.mark.parametrize(
    "sweep, job, expected",
    [
        (["+recipe=sft", "lr=1e-3,1e-4"], ["+recipe=sft", "lr=0.001"], ["lr=0.001"]),
        (["+recipe=sft", "lr=range(1,3)"], ["+recipe=sft", "lr=2"], ["lr=2"]),
        (["peft=lora,none", "~callbacks.table"], ["peft=none", "~callbacks.table="], ["peft=none"]),
        (["peft.target_modules=[q,v]", "lr=1,2"], ["peft.target_modules=[q, v]", "lr=2"], ["lr=2"]),
        (["+recipe=sft"], ["+recipe=sft", "seed=3"], ["seed=3"]),  # from hydra.sweeper.params, or from Optuna
        (["+recipe=sft", "lr=1e-3"], ["+recipe=sft", "lr=1e-3"], ["+recipe=sft", "lr=1e-3"]),
    ],
)
def test_runs_are_named_by_what_the_sweep_varies(sweep: list[str], job: list[str], expected: list[str]) -> None:
    """The last is a sweep of one job, which varies nothing: a run wants a name all the same."""
    assert list(setting_apart(job, sweep)) == expected
