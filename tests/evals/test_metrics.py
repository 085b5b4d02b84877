"""Scores of single answers and of what was found for them, by hand."""

from __future__ import annotations

import math

import pytest

from rfflow.evals import metrics


def test_words_of_an_answer() -> None:
    assert metrics.exact_match("The Eiffel Tower.", ["x", "eiffel tower"]) == 1
    assert metrics.contains("It is the Eiffel Tower, in Paris", ["Eiffel tower"]) == 1
    assert metrics.contains("catalogue", ["cat"]) == 0, "a part of a word is no word"
    assert metrics.f1("tall Eiffel tower", ["Eiffel Tower", "x"]) == pytest.approx(0.8)
    assert metrics.f1("the", ["x"]) == metrics.f1("x", []) == metrics.contains("x", ["the"]) == 0


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [("3 + 4 makes 7.", "#### 7", 1), ("$1,000.00", "1000", 1), ("7 of 8", "7", 0), ("none", "7", 0), ("-2", "2", 0)],
)
def test_the_last_number_counts(answer: str, reference: str, score: float) -> None:
    assert metrics.number_match(answer, [reference]) == score


def test_documents_found() -> None:
    found, relevant = ["a", "b", "c", "b"], {"b", "d"}
    assert metrics.recall(found, relevant, 3) == 0.5
    assert metrics.reciprocal_rank(found, relevant, 3) == 0.5
    assert metrics.reciprocal_rank(found, relevant, 1) == 0
    best = 1 + 1 / math.log2(3)
    assert metrics.ndcg(found, relevant, 4) == pytest.approx(1 / math.log2(3) / best), "found twice counts once"
    assert metrics.ndcg(["b", "d"], relevant, 2) == 1


def test_where_nothing_is_relevant_there_is_no_score() -> None:
    assert all(math.isnan(score(["a"], (), 3)) for score in (metrics.recall, metrics.ndcg, metrics.reciprocal_rank))


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        # Lin (2004), section 3.1: of "police killed the gunman", "police kill the gunman" has three words in order, and
        # "the gunman kill police" two.
        ("police kill the gunman", "police killed the gunman", 3 / 4),
        ("the gunman kill police", "police killed the gunman", 2 / 4),
        ("a b c d e", "a c e", 2 * 3 / 8),
        ("A, b!", "a-b", 1.0),
        ("x", "y", 0.0),
        ("", "y", 0.0),
    ],
)
def test_the_longest_sequence_of_words_counts(answer: str, reference: str, score: float) -> None:
    assert metrics.rouge_l(answer, [reference, "q"]) == pytest.approx(score)


def test_what_answers_took_can_be_scored() -> None:
    assert (metrics.latency(0.5), metrics.tokens({"a": 2, "b": 3}), metrics.cost(0.25)) == (0.5, 5, 0.25)
    assert math.isnan(metrics.tokens({})), "nobody has counted"
