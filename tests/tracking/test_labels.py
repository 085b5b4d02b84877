"""Runs are named by what tells them apart."""

from __future__ import annotations

from rfflow.tracking.labels import label_parts


def test_overrides_of_all_runs_are_left_out() -> None:
    """`+recipe=sft` says nothing about a run of a sweep of the same recipe."""
    found = label_parts({0: ["+recipe=sft", "lr=1e-3"], 1: ["+recipe=sft", "lr=1e-4"], 2: ["+recipe=sft"]})
    assert found == {0: "lr=1e-3", 1: "lr=1e-4", 2: ""}


def test_a_run_alone_shows_its_overrides() -> None:
    """There is nothing to tell it from."""
    assert label_parts({0: ["lr=1e-3", "+peft.r=4"]}) == {0: "lr=1e-3 peft.r=4"}


def test_keys_lose_their_groups_only_where_the_room_is_short() -> None:
    """And not where two of them would then look the same."""
    overrides = {0: ["trainer.args.warmup_steps=10"], 1: ["model.name=a", "dataset.name=b"]}
    assert label_parts(overrides, 40)[0] == "trainer.args.warmup_steps=10"
    assert label_parts(overrides, 20)[0] == "warmup_steps=10"
    assert label_parts(overrides, 26)[1] == "model.name=a dataset.name…"


def test_long_values_keep_both_ends_and_leave_room_for_the_others() -> None:
    """The end of a path is what tells it from another."""
    overrides = {0: ["model.name=models/base/first", "lr=1e-3"], 1: ["model.name=models/base/second", "lr=1e-4"]}
    assert label_parts(overrides, 24) == {0: "name=mode…rst lr=1e-3", 1: "name=mode…ond lr=1e-4"}
    assert label_parts(overrides, 16) == {0: "lr=1e-3 name=mo…", 1: "lr=1e-4 name=mo…"}
