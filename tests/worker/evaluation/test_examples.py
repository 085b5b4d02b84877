"""Few-shot examples come from rows that are not scored, whatever stands in the files."""

from __future__ import annotations

import pytest
from datasets import Dataset

from rfflow.errors import ConfigError
from rfflow.worker.data.rows import Data
from rfflow.worker.evaluation.pieces import in_order


def rows(*texts: str) -> Dataset:
    return Dataset.from_list([{"question": text, "reference": text.upper()} for text in texts])


def test_examples_are_never_what_is_scored() -> None:
    scored, pool = in_order(Data(rows("a", "b", "c", "d"), rows("b", "x", "d")), seed=1)
    assert {each.text for each in scored} == {"b", "x", "d"}
    assert {each.text for each in pool} == {"a", "c"}, "what stands in both files is scored, and no example"


def test_where_all_rows_are_scored_there_are_no_examples() -> None:
    scored, pool = in_order(Data(rows("a", "b", "c")), seed=1)
    assert len(scored) == 3 and not pool


def test_all_runs_have_the_same_order_and_examples() -> None:
    data = Data(rows(*"abcdefgh"), rows(*"stuvwxyz"))
    assert in_order(data, 3) == in_order(data, 3) != in_order(data, 4)


def test_an_evaluation_has_one_set() -> None:
    with pytest.raises(ConfigError, match=r"dataset\.eval_path names 2 sets"):
        in_order(Data(rows("a"), {"one": rows("b"), "two": rows("c")}), 0)
