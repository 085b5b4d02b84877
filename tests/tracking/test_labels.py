"""Runs are named by what tells them apart."""

from __future__ import annotations

import pytest

from rfflow.tracking.labels import label_parts, tell_apart


def test_overrides_of_all_runs_are_left_out() -> None:
    """`+recipe=sft` says nothing about a run of a sweep of the same recipe."""
    found = label_parts({0: ["+recipe=sft", "lr=1e-3"], 1: ["+recipe=sft", "lr=1e-4"], 2: ["+recipe=sft"]})
    assert found == {0: "lr=1e-3", 1: "lr=1e-4", 2: ""}


def test_a_run_alone_shows_its_overrides() -> None:
    """There is nothing to tell it from."""
    assert label_parts({0: ["lr=1e-3", "+peft.r=4"]}) == {0: "lr=1e-3 peft.r=4"}


@pytest.mark.parametrize(
    ("width", "line"),
    [(60, "recipe=sft name=t/model dataset=local path=t/train.jsonl"), (24, "recipe=sft name=t/model…")],
)
def test_a_run_alone_shows_what_was_typed_first_where_the_room_is_short(width: int, line: str) -> None:
    """All its values are what all runs have, so that nothing would be left of them."""
    overrides = ["+recipe=sft", "model.name=t/model", "dataset=local", "dataset.path=t/train.jsonl"]
    found = tell_apart({0: overrides}, width)
    assert (found.heading, found.lines) == ("", {0: line})


def test_keys_lose_their_groups_only_where_the_room_is_short() -> None:
    """And not where two of them would then look the same."""
    overrides = {0: ["trainer.args.warmup_steps=10"], 1: ["model.name=a", "dataset.name=b"]}
    assert label_parts(overrides, 40)[0] == "trainer.args.warmup_steps=10"
    assert label_parts(overrides, 20)[0] == "warmup_steps=10"
    assert label_parts(overrides, 26)[1] == "model.name=a dataset.name…"


def test_long_values_keep_both_ends_and_leave_room_for_the_others() -> None:
    """The end of a path is what tells it from another."""
    overrides = {0: ["model.name=models/base/first", "lr=1e-3"], 1: ["model.name=models/base/second", "seed=7"]}
    assert label_parts(overrides, 22) == {0: "name=mode…rst lr=1e-3", 1: "name=mode…ond seed=7"}
    assert label_parts(overrides, 16) == {0: "lr=1e-3 name=mo…", 1: "seed=7 name=mo…"}


def test_keys_go_before_little_is_left_of_the_values() -> None:
    """If all runs have the same keys; they are what to write above."""
    overrides = {0: ["model.name=models/base/first", "lr=1e-3"], 1: ["lr=1e-4", "model.name=models/base/second"]}
    assert tell_apart(overrides, 32).heading == ""
    found = tell_apart(overrides, 24)
    assert found.heading == "name lr"
    assert found.lines == {0: "models/base/first 1e-3", 1: "models/base/second 1e-4"}
    assert label_parts(overrides, 16) == {0: "mode…rst 1e-3", 1: "mode…ond 1e-4"}


def test_a_key_that_only_clones_have_is_a_dash_in_the_others() -> None:
    """They are set beside each other all the same."""
    overrides = {
        0: ["lr=0.0001", "peft=none"],
        1: ["lr=0.0001", "peft=lora"],
        2: ["lr=0.001", "peft=lora", "peft.r=32"],
    }
    assert label_parts(overrides, 16) == {0: "0.0001 none -", 1: "0.0001 lora -", 2: "0.001 lora 32"}


@pytest.mark.parametrize("width", [12, 16, 20, 30, 40])
@pytest.mark.parametrize(
    "runs",
    [
        [["lr=0.00010001", "peft=none"], ["lr=0.00010002", "peft=none"]],
        [["lr=0.00010001000", "peft=none"], ["lr=0.00010002000", "peft=lora"], ["lr=0.00010002000", "peft=none"]],
        [[f"model.name=outputs/sft/{n}/checkpoints/final", f"lr={lr}"] for n in range(12) for lr in ("1e-3", "1e-4")],
        [["lr=1e-3"], *(["lr=5e-4", "peft.r=32", f"trainer.args.warmup_steps={n}"] for n in (10, 11))],
        [["model.name=models/the/first/of/them", f"seed={n}"] for n in range(3)] + [["x=models/the/first/of/them"]],
    ],
)
def test_different_runs_never_look_alike(runs: list[list[str]], width: int) -> None:
    """Wherever the difference lies: in the middle of a value, or in what comes last."""
    found = label_parts(dict(enumerate(runs)), width)
    assert len(set(found.values())) == len(runs), found
    assert all(len(line) <= width for line in found.values())


def test_only_what_differs_is_left_where_there_is_no_more_room() -> None:
    """The rest of a value stands for all of them."""
    overrides = {n: [f"model.name=outputs/sft/{n}/checkpoints/final"] for n in range(2)}
    assert label_parts(overrides, 24) == {0: "name=…0…", 1: "name=…1…"}


def test_runs_with_the_same_overrides_do_not_spoil_the_labels_of_the_others() -> None:
    """A clone that changes nothing looks like its parent, whatever the form."""
    overrides = {0: ["lr=1e-3", "peft=none"], 1: ["lr=1e-3", "peft=none"], 2: ["lr=1e-4", "peft=lora"]}
    assert label_parts(overrides, 20)[1] == "lr=1e-3 peft=none"
