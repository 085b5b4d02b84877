"""The section ``dataset``: one data set or several, sets to evaluate on, weights; and what is said of a mistake."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from rfflow.config.dataset import read_dataset
from rfflow.config.spec import DatasetSpec
from rfflow.errors import ConfigError


def refused(**section: Any) -> str:
    with pytest.raises(ConfigError) as error:
        read_dataset(section)
    return str(error.value)


def test_paths_are_one_a_list_or_sets_by_name() -> None:
    assert read_dataset({"path": "a.jsonl", "eval_path": None}) == DatasetSpec(path="a.jsonl")
    assert read_dataset({"path": ["a.jsonl", "b*.jsonl"]}).path == ("a.jsonl", "b*.jsonl")
    spec = read_dataset({"path": "a", "eval_path": {"easy": "e.jsonl", "hard": ["h.jsonl", "i.jsonl"], "none": None}})
    assert spec.eval_path == {"easy": "e.jsonl", "hard": ("h.jsonl", "i.jsonl")}
    assert read_dataset({"name": "x/y", "eval_split": ["validation", "test"]}).eval_split == {
        "validation": "validation",
        "test": "test",
    }


def test_several_data_sets_are_a_list_or_named() -> None:
    parts = (DatasetSpec(path="a.jsonl", fraction=0.7), DatasetSpec(name="x/y", columns={"q": "prompt"}, fraction=3))
    given = [{"path": "a.jsonl", "fraction": 0.7}, {"name": "x/y", "columns": {"q": "prompt"}, "fraction": 3}]
    assert read_dataset({"datasets": given}).datasets == parts
    assert read_dataset({"datasets": dict(zip("ab", given, strict=True))}).datasets == parts
    assert read_dataset({"path": "a", "columns": ["q", "a"]}).columns == {"q": "q", "a": "a"}
    assert read_dataset({"datasets": ["a.jsonl", "b.jsonl"]}).datasets[1] == DatasetSpec(path="b.jsonl")


PART = {"path": "a.jsonl"}


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"path": {"a": 0.5}}, "dataset.path is {'a': 0.5}. Allowed: one text or a list of them, or null"),
        ({"path": ["a", 1.5, ["b"]]}, "dataset.path[2] is ['b']. Allowed: one text"),
        ({"path": "a", "eval_path": {}}, "names no evaluation set"),
        ({"path": "a", "eval_path": {"easy": " "}}, "dataset.eval_path.easy is ' '. Allowed: a path"),
        (
            {"path": "a", "eval_path": {"not easy": "b"}},
            "a set called 'not easy'. Its metrics are called eval_<name>_loss",
        ),
        ({"path": "a", "eval_split": [["b"]]}, "dataset.eval_split"),
        ({"path": "a", "datasets": [PART]}, "Give either dataset.path"),
        ({}, "Give either dataset.path"),
        ({"datasets": []}, "Give either dataset.path"),
        ({"datasets": "a.jsonl"}, "dataset.datasets is 'a.jsonl'. Allowed: a list of data sets"),
        ({"datasets": [PART, 3]}, "dataset.datasets[1] is 3. Allowed: a path, or a data set such as"),
        ({"datasets": [{"pth": "a"}]}, "dataset.datasets[0].pth is not a setting. Did you mean 'path'"),
        ({"datasets": [{"path": "a", "eval_path": "b"}]}, "dataset.datasets[0].eval_path is not a setting"),
        ({"datasets": [{"path": "a", "name": "b"}]}, "Give either dataset.datasets[0].path"),
        ({"datasets": {"one": {"path": "a", "columns": 3}}}, "dataset.datasets.one.columns is 3"),
        ({"path": "a", "fraction": 0.5}, "dataset.fraction is not a setting"),
        (
            {"datasets": [{**PART, "fraction": 0.5}, PART]},
            "dataset.datasets[1] is None. Allowed: a number from 0 up for each",
        ),
        ({"datasets": [{**PART, "fraction": "half"}] * 2}, "dataset.datasets[0] is 'half'"),
        ({"datasets": [{**PART, "fraction": 0}] * 2}, "are all 0"),
        (
            {"datasets": [{**PART, "fraction": 1}] * 2, "probabilities": [0.5, 0.5]},
            "dataset.probabilities and a fraction are two ways to mix",
        ),
        (
            {"path": ["a", "b"], "probabilities": [0.9, 0.6]},
            "add up to 1.5. They have to add up to 1, as about [0.6, 0.4] do",
        ),
        ({"path": ["a", "b"], "probabilities": [1, 0]}, "a list of numbers above 0"),
        ({"path": ["a", "b"], "probabilities": "0.5,0.5"}, "a list of numbers above 0"),
        ({"path": ["a", "b"], "probabilities": [0.5, 0.25, 0.25]}, "has 3 numbers for 2 data sets"),
        ({"path": "a*.jsonl", "probabilities": [1.0]}, "mixes several data sets, and there is one"),
        ({"path": ["a", "b"], "stopping_strategy": "all_exausted"}, "Did you mean 'all_exhausted'"),
        ({"path": ["a", "b"], "probabilities": [0.5, 0.5], "seed": -1}, "dataset.seed is -1"),
        ({"path": ["a", "b"], "seed": 1}, "there are no dataset.probabilities to draw by"),
    ],
)
def test_a_mistake_is_named(section: dict[str, Any], said: str) -> None:
    assert said in refused(**section)


def test_other_rows_have_another_key() -> None:
    """Runs with equal keys share their rows, and a resume compares by them."""
    sections: list[dict[str, Any]] = [
        {"path": "a"},
        {"path": ["a"]},
        {"path": ["a", "b"]},
        {"path": ["b", "a"]},
        {"path": "a", "eval_path": "b"},
        {"path": "a", "eval_path": {"x": "b"}},
        {"path": "a", "eval_path": {"y": "b"}},
        {"datasets": ["a", "b"]},
        {"datasets": [{"path": "a", "fraction": 1}, {"path": "b", "fraction": 1}]},
        {"datasets": [{"path": "a", "fraction": 1}, {"path": "b", "fraction": 2}]},
        {"path": ["a", "b"], "probabilities": [0.5, 0.5]},
        {"path": ["a", "b"], "probabilities": [0.5, 0.5], "seed": 0},
        {"path": ["a", "b"], "probabilities": [0.5, 0.5], "seed": 1},
        {"path": ["a", "b"], "stopping_strategy": "all_exhausted"},
    ]
    for one, other in itertools.combinations(sections, 2):
        assert read_dataset(one).key != read_dataset(other).key, (one, other)
    assert read_dataset(sections[-3]).key == read_dataset(sections[-3]).key
