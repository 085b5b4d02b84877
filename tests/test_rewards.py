"""The reward functions on examples that a reader can check by eye."""

from __future__ import annotations

import pytest

from rfflow import rewards

NEAT = "<reasoning>\n3 and 4 are 7\n</reasoning>\n<answer>\n7\n</answer>\n"
LOOSE = "Well. <reasoning>3 and 4</reasoning> <answer>7.0</answer> Done."
PLAIN = "7"
WRONG = "<reasoning>\nhm\n</reasoning>\n<answer>\neight\n</answer>"
OPEN = "<reasoning>3 and 4 are <answer>7"


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("correct_answer", [2.0, 2.0, 2.0, 0.0, 2.0]),
        ("integer_answer", [0.5, 0.0, 0.5, 0.0, 0.5]),
        ("strict_format", [0.5, 0.0, 0.0, 0.5, 0.0]),
        ("soft_format", [0.5, 0.5, 0.0, 0.5, 0.0]),
        ("tag_count", [0.5, 0.495, 0.0, 0.5, 0.25]),
    ],
)
@pytest.mark.parametrize("as_messages", [False, True], ids=["text", "messages"])
def test_the_classic_set(function: str, expected: list[float], as_messages: bool) -> None:
    """Five answers to 3 + 4: neat, loose, bare, wrong, cut off. Columns that a function does not read do no harm."""
    completions = [NEAT, LOOSE, PLAIN, WRONG, OPEN]
    given = [[{"role": "assistant", "content": text}] for text in completions] if as_messages else completions
    found = getattr(rewards, function)(completions=given, prompts=[""] * 5, answer=["7"] * 5, trainer_state=None)
    assert found == pytest.approx(expected)
    assert function in rewards.CLASSIC


@pytest.mark.parametrize(
    ("said", "wanted", "is_right"),
    [
        ("1234", "He earns 1,200 + 34.\n#### 1,234", True),
        ("$18", "18", True),
        ("18.50", "18.5", True),
        ("-3", "3", False),
        ("Paris ", "paris", True),
        ("", "0", False),
        ("12 apples", "12", False),
        ("<answer>1</answer> no, <answer>2</answer>", "2", True),
    ],
)
def test_answers_are_compared_as_people_would(said: str, wanted: str, is_right: bool) -> None:
    assert rewards.correct_answer([said], answer=[wanted]) == [2.0 if is_right else 0.0]
    assert rewards.correct_answer([said], answer=[wanted], reward=0.5) == [0.5 if is_right else 0.0]


@pytest.mark.parametrize(
    ("said", "wanted", "expected"),
    [
        (r"<answer>\frac{1}{2}</answer>", "0.5", 1.0),
        ("<answer>1/2</answer>", "#### 0.5", 1.0),
        ("<answer>x + x</answer>", "2x", 1.0),
        ("<answer>0.4</answer>", "1/2", 0.0),
        ("", "1/2", 0.0),
        ("1", "", None),
    ],
)
def test_mathematics_is_compared_as_mathematics(said: str, wanted: str, expected: float | None) -> None:
    pytest.importorskip("math_verify")
    assert rewards.math_verify([said], answer=[wanted]) == [expected]
