"""A model as the judge: what it is asked, and what is read in its words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from rfflow.errors import ConfigError
from rfflow.evals.items import Item
from rfflow.evals.judging import Judge, parted
from rfflow.evals.questions import Question
from rfflow.evals.scoring import Metrics
from rfflow.worker.evaluation.judges import make_judging
from rfflow.worker.evaluation.replies import Reply

QUESTIONS = [Question(str(n), f"What is {n}?", (str(n), "x"), (), {"topic": "sums"}) for n in range(3)]
PROMPT = "{{ topic }}: {{ question }} {{ reference }} / {{ answer }}"


def test_the_judge_sees_question_reference_and_answer() -> None:
    judge = Judge(PROMPT, system="On {{ topic }}.")
    assert judge.messages(QUESTIONS[1], "one") == [
        {"role": "system", "content": "On sums."},
        {"role": "user", "content": "sums: What is 1? 1 / one"},
    ]


@pytest.mark.parametrize(
    ("said", "score"),
    [
        ("It says so. Score: 5", 1.0),
        ("score 1 or rather **Score:** 3.", 0.5),
        ("SCORE = 2.5", 0.375),
    ],
)
def test_marks_become_scores(said: str, score: float) -> None:
    assert Judge(PROMPT).score(said) == score


def test_scales_may_run_downwards_and_patterns_be_ones_own() -> None:
    judge = Judge(PROMPT, scale=[6, 1], pattern=r"mark (\d)")
    assert (judge.score("mark 1"), judge.score("mark 6")) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("said", "trouble"),
    [
        ("Splendid.", "there is no mark in what the judge has said: 'Splendid.'"),
        ("", "there is no mark"),
        ("Score: 9", "the judge's mark is 9, and the scale goes from 1 to 5"),
    ],
)
def test_what_is_no_mark_is_no_score(said: str, trouble: str) -> None:
    with pytest.raises(ValueError, match=trouble):
        Judge(PROMPT).score(said)


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"scale": [3, 3]}, "the worst and the best mark are one"),
        ({"scale": "high"}, r"scale is 'high'\. Allowed"),
        ({"pattern": "("}, "no regular expression"),
        ({"pattern": "score"}, "The mark stands in a group"),
        ({"prompt": "{{ answer"}, "prompt is no template of Jinja"),
    ],
)
def test_judges_that_cannot_be_are_refused(kwargs: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Judge(**{"prompt": PROMPT, **kwargs})


NODE = {"_target_": "rfflow.evals.judging.Judge", "prompt": PROMPT, "generator": {"_target_": "x.Y", "concurrency": 2}}


def test_judges_are_no_functions_of_an_answer() -> None:
    nodes = {"f1": {"_target_": "rfflow.evals.metrics.f1"}, "judge": NODE}
    assert [list(each) for each in parted(nodes)] == [["f1"], ["judge"]]
    assert Metrics(nodes, QUESTIONS)(QUESTIONS[0], "0", (), 1, {})[0] == {"f1": 1.0}


class InBatches:
    """A judge's model that knows three answers."""

    batch_size = 2

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def generate(self, prompts: Sequence[Any]) -> list[Reply]:
        self.sizes.append(len(prompts))
        said = {"good": "Score: 5", "odd": "Hm.", "gone": None}
        texts = [said[prompt[-1]["content"].rpartition(" ")[2]] for prompt in prompts]
        return [Reply(text, {"prompt_tokens": 4}, cost=0.5, error=None if text else "time-out") for text in texts]


class Refusing(InBatches):
    """One that speaks of itself as the section generator."""

    def check(self, prompts: Sequence[Any], names: Sequence[str]) -> None:
        raise ConfigError("generator.model is 'x'. generator_of, y.generator")


async def one_by_one(messages: Any) -> str:
    return "Score: 5" if messages[-1]["content"].endswith("good") else "Hm."


@pytest.mark.parametrize("generator", [InBatches(), one_by_one])
def test_answers_are_judged_and_what_is_malformed_is_missing(generator: Any) -> None:
    judging = make_judging("judge", NODE, QUESTIONS, lambda node, where: generator)
    answers = ["good", "odd", "gone"] if isinstance(generator, InBatches) else ["good", "odd", "odd"]
    items = {n: Item(n, str(n), "", answer, (), {"f1": 1.0}, {"t": 3}, cost=0.25) for n, answer in enumerate(answers)}
    found: dict[int, Item] = {}
    judging.begin(QUESTIONS, items, lambda item: found.update({item.position: item}))
    while judging.replies.next():
        pass
    judging.replies.close()
    assert [found[n].scores for n in range(3)] == [{"f1": 1.0, "judge": score} for score in (1.0, None, None)]
    assert found[1].error == "metrics.judge: there is no mark in what the judge has said: 'Hm.'"
    if isinstance(generator, InBatches):
        assert found[2].error == "metrics.judge: time-out" and generator.sizes == [2, 1]
        assert (found[0].usage, found[0].cost) == ({"t": 3, "judge_tokens": 4}, 0.75)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"generator": None}, r"metrics\.judge\.generator is None\. A judge wants a model"),
        ({"prompt": "{{ anser }}"}, r"metrics\.judge\.prompt has \{\{ anser \}\}.*Did you mean 'answer'"),
        ({"scale": [1, 1]}, r"metrics\.judge\.scale is \[1, 1\]"),
        (
            {"generator": {"_target_": "Refusing"}},
            r"^metrics\.judge\.generator\.model is 'x'\. generator_of, y\.generator",
        ),
    ],
)
def test_what_a_judge_lacks_is_said_first(changed: dict[str, Any], said: str) -> None:
    def generator(node: Any, where: str) -> Any:
        return Refusing() if node["_target_"] == "Refusing" else one_by_one

    with pytest.raises(ConfigError, match=said):
        make_judging("judge", {**NODE, **changed}, QUESTIONS, generator)
