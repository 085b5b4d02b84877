"""docs/arguments.md is about the libraries that are installed, and says what the tables and the tests say."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import trl
from transformers import TrainingArguments

from rfflow.worker.training.unread_arguments import NEVER, ONLY_WITH
from tests.worker.training import test_every_argument as tried

PAGE = Path(__file__).parents[3] / "docs" / "arguments.md"
TRAINERS = ("SFT", "DPO", "KTO", "Reward", "GRPO", "RLOO")
LOOK = "See what it does in a run among others: honour it or answer it, try it, and add a line to docs/arguments.md."


def rows(heading: str) -> dict[str, list[str]]:
    """Return the cells of a table of the page, by argument."""
    text = PAGE.read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = re.findall(r"^\| `(\w+)` \| (.*) \|$", text, flags=re.MULTILINE)
    assert len(lines) == len(dict(lines)), "an argument has two lines"
    return {name: rest.split(" | ") for name, rest in lines}


def test_every_argument_of_transformers_has_been_looked_at() -> None:
    there = {field.name for field in fields(TrainingArguments)}
    assert sorted(there - rows("transformers.TrainingArguments").keys()) == [], LOOK
    assert sorted(rows("transformers.TrainingArguments").keys() - there) == [], "Take these lines out."


def test_every_argument_of_trls_own_has_been_looked_at() -> None:
    general = {field.name for field in fields(TrainingArguments)}
    there = {
        (field.name, trainer)
        for trainer in TRAINERS
        for field in fields(getattr(trl, f"{trainer}Config"))
        if field.name not in general
    }
    said = {(name, trainer) for name, cells in rows("TRL's own").items() for trainer in cells[0].split(", ")}
    assert sorted(there - said) == [], LOOK
    assert sorted(said - there) == [], "Take these lines, or trainers, out."


def every_row() -> dict[str, list[str]]:
    own = {name: cells[1:] for name, cells in rows("TRL's own").items()}
    return {**rows("transformers.TrainingArguments"), **own}


def test_what_the_tables_answer_is_called_answered() -> None:
    for name in {*NEVER, *ONLY_WITH}:
        what, how = every_row()[name]
        assert "answered" in what and "answer" in how, name
    for name in NEVER:
        assert every_row()[name][0].startswith("answered"), name


def test_what_is_said_to_be_tried_bit_by_bit_is() -> None:
    experiments = (tried.ANY, tried.SFT, tried.OTHER_ROWS, tried.DPO, tried.DPO_EVERY_WEIGHT, tried.KTO, tried.REWARD)
    generating = (tried.GENERATED, tried.GRPO, tried.RLOO)
    variants = [args for experiment in (*experiments, *generating) for args in experiment.values()]
    set_somewhere = {key for args in variants for key, value in args.items() if value is not None}
    said = {name for name, (_, how) in every_row().items() if re.match(r"bits(,|$)", how)}
    by_hand = {name for name, (_, how) in every_row().items() if "by hand" in how}
    assert sorted(said - set_somewhere - by_hand) == []
