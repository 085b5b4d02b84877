"""Questions, prompts, passages, scores and estimates; and what is answered where one of them cannot be."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rfflow.config.spec import PromptSpec
from rfflow.errors import ConfigError
from rfflow.evals.chunking import passages, words
from rfflow.evals.comparison import Candidate, ahead, are_comparable, leader
from rfflow.evals.estimates import compare, estimate, running_metrics, shares
from rfflow.evals.items import Item, ItemsFile, read_items
from rfflow.evals.prompts import Prompt
from rfflow.evals.questions import Document, Question, permutation, read_documents, read_questions, shards
from rfflow.evals.retrieval import make_retriever, retrieve
from rfflow.evals.scoring import Metrics

ROWS = [{"question": f"What is {n}?", "reference": [str(n)], "topic": "sums"} for n in range(4)]
DOCUMENTS = [Document("a", "one two three four five"), Document("b", "six seven")]


def test_rows_become_questions() -> None:
    questions = read_questions(ROWS)
    assert questions[2] == Question("2", "What is 2?", ("2",), (), {"topic": "sums"})
    assert read_questions([{"id": 7, "question": "?", "references": ["a", "b"], "relevant": 3}])[0].relevant == ("3",)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "no questions"),
        ([{"questio": "What?"}], "no question in row 0: None. Did you mean"),
        ([{"question": "  "}], "no question in row 0: '  '"),
        (
            [{"question": "a", "id": 1}, {"question": "b", "id": 1}],
            "two questions with the id '1', the second in row 1. Allowed: each id once",
        ),
    ],
)
def test_rows_that_are_no_questions_are_refused(rows: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_questions(rows)


def test_documents_that_stand_there_twice_are_one() -> None:
    row = {"id": "a", "text": "one", "title": "A"}
    assert read_documents([row, row, {"text": "two"}]) == [Document("a", "one", "A"), Document("2", "two")]
    for rows, said in (
        ([], "no documents"),
        ([{"txt": "one"}], "no text in row 0"),
        ([row, {**row, "text": "another"}], "two different documents have the id 'a'"),
    ):
        with pytest.raises(ConfigError, match=said):
            read_documents(rows)


def test_questions_come_in_one_order_and_in_equal_shards() -> None:
    assert permutation(50, 3) == permutation(50, 3) != permutation(50, 4)
    assert sorted(permutation(50, 3)) == list(range(50))
    assert shards(10, 4) == (2, 5, 7, 10)
    with pytest.raises(ConfigError, match="chunks is 4, and there are 3 questions"):
        shards(3, 4)


def test_documents_are_cut_into_passages() -> None:
    assert words("a b c d e", size=3, overlap=1) == ["a b c", "c d e"]
    assert [each.text for each in passages(DOCUMENTS, lambda text: words(text, 4))] == [
        "one two three four",
        "five",
        "six seven",
    ]
    with pytest.raises(ConfigError, match="size is 2 and overlap is 2"):
        words("a", 2, 2)


# --- prompts ----------------------------------------------------------------------------------------------------------


def test_a_prompt_has_examples_with_their_answers_and_passages_first() -> None:
    questions, pool = read_questions(ROWS[:2]), read_questions(ROWS[2:])
    spec = PromptSpec(
        "{% for p in passages %}{{ p.text }} {% endfor %}{{ question }}", "On {{ topic }}.", 1, "So {{ reference }}"
    )
    prompt = Prompt(spec, questions, pool)
    assert prompt(questions[0], [Document("a", "text")], [[Document("b", "other")]]) == [
        {"role": "system", "content": "On sums."},
        {"role": "user", "content": "other What is 2?"},
        {"role": "assistant", "content": "So 2"},
        {"role": "user", "content": "text What is 0?"},
    ]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (PromptSpec("{{ questio }}"), "prompt.user has {{ questio }}, and there is no 'questio'. Did you mean"),
        (PromptSpec("{{ reference }}"), "there is no 'reference'"),  # it would give the answer away
        (
            PromptSpec("{{ question"),
            "prompt.user is no template of Jinja: unexpected end of template, expected 'end of print statement'.",
        ),
        (PromptSpec("{{ question }}", fewshot=3), "prompt.fewshot is 3, and there are 2 rows"),
        (PromptSpec("{{ question.__class__.__mro__ }}"), "cannot be filled in for question '0': SecurityError"),
        (PromptSpec("{{ question.nothing.at }}"), "cannot be filled in for question '0': UndefinedError"),
    ],
)
def test_prompts_that_cannot_be_are_refused(spec: PromptSpec, said: str) -> None:
    questions, pool = read_questions(ROWS[:2]), read_questions(ROWS[2:])
    with pytest.raises(ConfigError) as refused:
        Prompt(spec, questions, pool)(questions[0], [])
    assert said in str(refused.value)


# --- retrieval --------------------------------------------------------------------------------------------------------


class ByWord:
    """A user's own retriever."""

    def __init__(self, documents: list[Document], least: int = 1):
        self.documents = documents

    def retrieve(self, questions: list[str], k: int) -> list[list[int]]:
        return [[n for n, each in enumerate(self.documents) if question in each.text] for question in questions]


class Elsewhere:
    """Another, which looks where we cannot."""

    def retrieve(self, questions: list[str], k: int) -> list[list[Any]]:
        return [[{"id": "x", "text": "found"}, "as it is"] for _ in questions]


class Broken(Elsewhere):
    def retrieve(self, questions: list[str], k: int) -> list[list[Any]]:
        return [[17] for _ in questions]


def test_retrievers_of_ones_own() -> None:
    made = make_retriever({"_target_": f"{__name__}.ByWord", "least": 2}, DOCUMENTS)
    assert retrieve(made, ["two", "seven", "nothing"], 3, DOCUMENTS) == [[DOCUMENTS[0]], [DOCUMENTS[1]], []]
    made = make_retriever({"_target_": f"{__name__}.Elsewhere"}, None)
    assert retrieve(made, ["two"], 1) == [[Document("x", "found")]]
    with pytest.raises(ConfigError, match=r"looks in documents\. Say corpus="):
        make_retriever({"_target_": f"{__name__}.ByWord"}, None)
    with pytest.raises(ConfigError, match="no method retrieve"):
        make_retriever({"_target_": "builtins.dict"}, None)
    with pytest.raises(ConfigError, match=r"retriever returned 17\. Allowed: places among the documents"):
        retrieve(Broken(), ["two"], 1, DOCUMENTS)


def test_bm25_finds_the_passage_with_the_words_of_the_question() -> None:
    pytest.importorskip("bm25s")
    found = retrieve(
        make_retriever({"_target_": "rfflow.evals.bm25.BM25"}, DOCUMENTS), ["seven", "three"], 1, DOCUMENTS
    )
    assert [[each.id for each in documents] for documents in found] == [["b"], ["a"]]


# --- scores -----------------------------------------------------------------------------------------------------------


def long(answer: str) -> float:
    """Score by the length."""
    return len(answer)


def hits(answer: str, references: list[str]) -> tuple[int, int]:
    return sum(word in references for word in answer.split()), len(answer.split())


def raising(answer: str, row: dict[str, Any]) -> float:
    return float(row["nothing"])


def silent(answer: str) -> Any:
    return None


def wanting(answer: str, other: int) -> float:
    return 1.0


def test_metrics_get_what_they_ask_for_and_one_that_fails_is_missing() -> None:
    questions = read_questions(ROWS)
    nodes = {
        "f1": {"_target_": "rfflow.evals.metrics.f1"},
        "recall": {"_target_": "rfflow.evals.metrics.recall", "k": 1},
        "hits": {"_target_": f"{__name__}.hits"},
        "long": {"_target_": f"{__name__}.long"},
        "length": {"_target_": f"{__name__}.long", "range": [0, None]},
        "raising": {"_target_": f"{__name__}.raising"},
        "silent": {"_target_": f"{__name__}.silent"},
    }
    scores, trouble = Metrics(nodes, questions)(questions[2], "2 or 3", ("a",), 3, {})
    assert scores == {
        "f1": 0.5,
        "recall": None,
        "hits": (1.0, 3.0),
        "long": None,
        "length": 6.0,
        "raising": None,
        "silent": None,
    }
    assert trouble is not None and "metrics.silent returned None; allowed: a number, or" in trouble
    assert "metrics.long returned 6, which is outside of 0.0 to 1.0; metrics.long.range=" in trouble
    assert "metrics.raising raised KeyError: 'nothing'" in trouble and "metrics.recall returned nan" in trouble


def test_metrics_that_cannot_be_called_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"metrics.w: .*wanting wants 'other', which nobody gives"):
        Metrics({"w": {"_target_": f"{__name__}.wanting"}}, [])
    rows = [{"id": f"q{n}", "question": "?", "reference": [float("nan"), " ", "said"][n]} for n in (0, 1, 2)]
    questions = read_questions(rows)
    with pytest.raises(ConfigError, match=r"metrics\.f1 .* and 2 of 3 questions have none, the first 'q0'"):
        Metrics({"f1": {"_target_": "rfflow.evals.metrics.f1"}}, questions)


# --- what is written --------------------------------------------------------------------------------------------------


def test_a_line_that_was_being_written_is_lost_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    file = ItemsFile(path)
    first = Item(0, "a", "hash", "answer", ("d",), {"f1": 0.5, "hits": (1.0, 3.0), "none": None}, {"prompt_tokens": 3})
    file.put(first)
    file.put(Item(1, "b", "hash", error="no answer"))
    file.close()
    with path.open("a") as torn:
        torn.write(json.dumps({"position": 2})[:8])
    assert read_items(path) == {0: first, 1: Item(1, "b", "hash", error="no answer")}
    file = ItemsFile(path)
    file.put(Item(1, "b", "hash", "late"))
    file.close()
    assert [item.answer for item in read_items(path).values()] == ["answer", "late"]
    assert len(path.read_text().splitlines()) == 3


# --- estimates --------------------------------------------------------------------------------------------------------


def test_the_shares_of_all_candidates_and_clones_are_no_more_than_the_whole() -> None:
    parents: dict[int, int | None] = {number: None if number < 8 else 0 for number in range(1008)}
    found = shares(parents)
    assert 0.998 < sum(found.values()) <= 1
    assert {found[number] for number in range(8)} == {0.9 / 8} and found[8] > found[9] > found[1007]
    foreseen = shares({0: None, 1: None, 2: 0, 3: 0}, 3)
    assert [foreseen[number] for number in range(3)] == [0.3] * 3 and foreseen[3] < 0.1, "the first clone was foreseen"


def test_intervals_end_on_the_value_unless_something_is_missing() -> None:
    scores = [float(n % 2) for n in range(20)]
    early = estimate(scores[:10], 20, (10, 20), 0.05, (0, 1))
    assert early.low < 0.5 < early.high and early.high - early.low > 0.4
    assert estimate(scores, 20, (10, 20), 0.05, (0, 1)).low == estimate(scores, 20, (10, 20), 0.05, (0, 1)).high == 0.5
    gone = estimate([None, *scores[1:]], 20, (10, 20), 0.05, (0, 1))
    assert (gone.low, gone.high, gone.missing) == (0.5, 0.55, 1)
    exact = estimate(scores[:10], 20, (10, 20), 0.05, (0, 1), "exact")
    anytime = estimate(scores[:10], 20, (10, 20), 0.05, (0, 1), "anytime")
    assert exact.low < 0.5 < exact.high and anytime.low < 0.5 < anytime.high
    assert {exact.high, anytime.high}.isdisjoint({early.high})


def test_candidates_are_compared_on_the_questions_that_both_have() -> None:
    better, worse = [1.0] * 18 + [0.0] * 2, [0.0] * 8
    found = compare(better, worse, 20, (10, 20), 0.05, (0, 1))
    assert found.n == 8 and found.value == 1.0 and found.low > 0


def test_running_metrics_hold_together_at_every_look() -> None:
    """Eight candidates, four looks: in at most one of twenty experiments is any interval ever wrong."""
    generator, size, looks, wrong = np.random.default_rng(0), 60, (15, 30, 45, 60), 0
    for _ in range(60):
        misses = 0
        order = generator.permutation(size)
        for _candidate in range(8):
            scores = (generator.random(size) < 0.6).astype(float)
            items = {place: Item(place, "", "", "", (), {"m": scores[order[place]]}) for place in range(size)}
            for end in looks:
                found = running_metrics(items, end, size, looks, 0.05 * 0.9 / 8, {"m": (0, 1)})
                misses += (
                    not found["eval_m_low"] <= scores.mean() + 1e-12
                    or not found["eval_m_high"] >= scores.mean() - 1e-12
                )
        wrong += misses > 0
    assert wrong <= 6


def test_what_answers_took_is_summed_up() -> None:
    items = {
        0: Item(0, "a", "", "x", (), {"m": 1.0}, {"prompt_tokens": 3, "completion_tokens": 2}, 0.5, 0.25),
        1: Item(1, "b", "", None, error="gone"),
    }
    found = running_metrics(items, 2, 4, (2, 4), 0.05, {"m": (0, 1)})
    assert {key: found[key] for key in ("eval_missing", "eval_latency", "eval_tokens", "eval_cost")} == {
        "eval_missing": 1.0,
        "eval_latency": 0.5,
        "eval_tokens": 5.0,
        "eval_cost": 0.25,
    }
    assert not math.isnan(found["eval_m"])
    assert found["eval_tokens_total"] == 10.0 and found["eval_tokens_total_low"] == 0.0, "of four questions"
    assert not any("beyond" in name for name in found)


def test_at_the_end_there_is_the_reading_for_other_questions_too() -> None:
    items = {place: Item(place, str(place), "", "x", (), {"m": float(place < 30)}, cost=0.5) for place in range(40)}
    found = running_metrics(items, 40, 40, (20, 40), 0.05, {"m": (0, 1)})
    assert found["eval_m_low"] == found["eval_m_high"] == 0.75
    assert 0.5 < found["eval_m_beyond_low"] < 0.65 and 0.83 < found["eval_m_beyond_high"] < 0.95
    assert found["eval_cost_total_low"] == found["eval_cost_total_high"] == found["eval_cost"] == 20


def test_whoever_leads_in_the_same_answers_is_compared_with_care() -> None:
    """Sixteen of nearly the same quality: the limits of all differences to the leading one hold together."""
    generator, looks, wrong = np.random.default_rng(5), (125, 250, 375, 500), 0
    parts = shares(dict.fromkeys(range(16)))
    for _ in range(40):
        answers = (generator.random((16, 500)) < 0.6).astype(float)
        truth, misses = answers.mean(1), 0
        for end in looks[:-1]:
            there = {n: Candidate(n, list(answers[n, :end]), looks, (0, 1), share=parts[n]) for n in range(16)}
            first = leader(there, "maximize")
            assert first is not None
            for number in set(there) - {first}:
                gap = ahead(there[number], there[first])
                misses += not gap.low <= truth[number] - truth[first] <= gap.high
        wrong += misses > 0
    assert wrong <= 2  # with a share of 1 / 15 for each comparison, 6 of 40


def test_those_who_were_asked_something_else_are_not_compared() -> None:
    one = Candidate(0, [1.0, 0.0], (2, 4), (0, 1), questions=("a", "b"))
    assert are_comparable(one, Candidate(1, [1.0], (2, 4), (0, 1), questions=("a",)))
    assert not are_comparable(one, Candidate(1, [1.0], (2, 4), (0, 1), questions=("b",)))
    assert not are_comparable(one, Candidate(1, [1.0, 0.0], (2, 5), (0, 1), questions=("a", "b")))


def test_the_leader_is_found_on_common_questions_and_others_are_compared_with_it() -> None:
    looks = (10, 20)
    many = Candidate(0, [1.0] * 10 + [0.0] * 10, looks, (0, 1))
    few = Candidate(1, [1.0] * 9 + [0.0], looks, (0, 1))
    none = Candidate(2, [], looks, (0, 1))
    there = {0: many, 1: few, 2: none}
    assert leader(there, "maximize") == 0, "on the first ten it is ahead, whatever came later"
    assert leader(there, "minimize") == 1
    assert leader({2: none}, "maximize") is None
    found = ahead(few, many)
    assert found.n == 10 and found.value == pytest.approx(-0.1) and found.low < -0.1 < found.high
