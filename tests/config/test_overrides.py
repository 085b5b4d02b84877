"""Which overrides tell the runs of a sweep apart."""

from __future__ import annotations

import pytest

from rfflow.config.overrides import as_written, on_top, setting_apart


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


@pytest.mark.parametrize(
    "parent, own, expected",
    [
        (["+recipe=sft", "lr=1"], ["lr=2", "peft.r=4"], ["+recipe=sft", "lr=2", "peft.r=4"]),
        (["+recipe=sft", "lr=1"], ["recipe=dpo"], ["lr=1", "+recipe=dpo"]),
        (["+x=1"], ["++x=2"], ["++x=2"]),
        (["peft=lora", "peft.r=4"], ["peft=none", "~peft.r"], ["peft.r=4", "peft=none", "~peft.r"]),
        (["a@b=1", "a@c=1"], ["a@b=2"], ["a@c=1", "a@b=2"]),
    ],
)
def test_a_clones_overrides_lie_on_its_parents(parent: list[str], own: list[str], expected: list[str]) -> None:
    assert on_top(parent, own) == expected


@pytest.mark.parametrize(
    "handed_on, written",
    [
        (r"peft.lora_alpha=$\{peft.r\}", "peft.lora_alpha=${peft.r}"),
        (r"+note=$\{oc.env\:X\,'a\ b'\}", "+note=${oc.env:X,'a b'}"),
        ("a='x ${b}'", "a='x ${b}'"),
        (r"a=[$\{b\},c]", r"a=[$\{b\},c]"),  # in a list they are left alone
        ("lr=0.001", "lr=0.001"),
    ],
)
def test_what_a_sweeper_hands_on_is_written_as_people_do(handed_on: str, written: str) -> None:
    assert as_written([handed_on]) == [written]
