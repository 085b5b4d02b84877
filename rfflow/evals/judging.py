"""A model as the judge of answers: what it is asked, and what is read in what it says."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rfflow.config.spec import Node
from rfflow.config.targets import import_object
from rfflow.errors import ConfigError
from rfflow.evals.prompts import Messages, Template
from rfflow.evals.questions import Question, shortened

_NUMBER = r"-?\d+(?:\.\d+)?"


class Judge:
    """Asks for a mark, and makes a score from 0 to 1 of it.

    Args:
        prompt: a template of Jinja, in a sandbox, with ``question``, ``answer``, ``reference``, ``references`` and the
            row's columns.
        system: one that stands before it.
        scale: the worst and the best mark.
        pattern: a regular expression whose first group is the mark; the last place where it is found counts.
    """

    def __init__(
        self,
        prompt: str,
        system: str | None = None,
        scale: Sequence[float] = (1, 5),
        pattern: str = rf"(?i)score\W{{0,5}}({_NUMBER})",
    ):
        try:
            self._worst, self._best = map(float, scale)
        except (TypeError, ValueError):
            raise ConfigError(f"scale is {scale!r}. Allowed: the worst and the best mark, as [1, 5].") from None
        if self._worst == self._best:
            raise ConfigError(f"scale is {scale!r}: the worst and the best mark are one.")
        try:
            self._pattern = re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"pattern is {pattern!r}, which is no regular expression: {error}.") from error
        if not self._pattern.groups:
            raise ConfigError(f"pattern is {pattern!r}. The mark stands in a group: give it one, in parentheses.")
        self._prompt = Template("prompt", prompt)
        self._system = None if system is None else Template("system", system)

    def check(self, questions: Sequence[Question]) -> None:
        """Check that the templates use what is there.

        Raises:
            ConfigError: naming what is not.
        """
        known = {"question", "answer", "reference", "references", *(key for each in questions for key in each.row)}
        for template in (self._prompt, self._system):
            if template is not None:
                template.check(known)

    def messages(self, question: Question, answer: str) -> Messages:
        """Return what the judge is sent."""
        reference = question.references[0] if question.references else ""
        given = {
            **question.row,
            "question": question.text,
            "answer": answer,
            "reference": reference,
            "references": list(question.references),
        }
        user = {"role": "user", "content": self._prompt.render(given, question.id)}
        if self._system is None:
            return [user]
        return [{"role": "system", "content": self._system.render(given, question.id)}, user]

    def score(self, said: str) -> float:
        """Return the score.

        Raises:
            ValueError: if there is no mark in what was said, or one that is not on the scale.
        """
        found = [match.group(1) for match in self._pattern.finditer(said)]
        try:
            mark = float(found[-1])
        except (IndexError, TypeError, ValueError):
            raise ValueError(f"there is no mark in what the judge has said: {shortened(said)}") from None
        low, high = sorted((self._worst, self._best))
        if not low <= mark <= high:
            raise ValueError(f"the judge's mark is {mark:g}, and the scale goes from {low:g} to {high:g}")
        return (mark - self._worst) / (self._best - self._worst)


def is_judge(node: Node, where: str = "metrics") -> bool:
    """Whether a metric asks a model: it is a class with ``messages`` and ``score``, as :class:`Judge` is."""
    made: Any = import_object(str(node["_target_"]), where)
    return isinstance(made, type) and all(callable(getattr(made, name, None)) for name in ("messages", "score"))


def parted(nodes: Mapping[str, Node]) -> tuple[dict[str, Node], dict[str, Node]]:
    """Return the metrics that are functions, and those that are judges."""
    judges = {name: node for name, node in nodes.items() if is_judge(node, f"metrics.{name}")}
    return {name: node for name, node in nodes.items() if name not in judges}, judges
