"""Scores of single answers, by functions that take what they name: answer, references, question, found, relevant, k."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rfflow.config.spec import Node
from rfflow.config.targets import resolve_function
from rfflow.errors import ConfigError
from rfflow.evals.items import Score
from rfflow.evals.judging import parted
from rfflow.evals.questions import Question, check_references
from rfflow.evals.statistics import UNIT, Range

GIVEN = ("answer", "references", "reference", "question", "found", "relevant", "k", "row", "usage", "latency", "cost")
"""What a metric may ask for by the names of its parameters."""


@dataclass(frozen=True)
class _Metric:
    name: str
    function: Callable[..., Any]
    asks: tuple[str, ...]
    bounds: Range


def range_of(node: Node) -> Range:
    """Return the least and greatest score that a metric says it has."""
    low, high = node.get("range", UNIT)
    return low, high


class Metrics:
    """The metrics of a run."""

    def __init__(self, nodes: Mapping[str, Node], questions: Sequence[Question]):
        """Import the functions, and look at what they ask for.

        Raises:
            ConfigError: if one asks for what nobody gives, or for references that are not there.
        """
        self._metrics = [_load(name, node) for name, node in parted(nodes)[0].items()]
        for metric in self._metrics:
            if {"references", "reference"} & set(metric.asks):
                check_references(questions, f"metrics.{metric.name}")

    def __call__(
        self,
        question: Question,
        answer: str,
        found: Sequence[str],
        k: int,
        usage: Mapping[str, float],
        latency: float = 0.0,
        cost: float = 0.0,
    ) -> tuple[dict[str, Score], str | None]:
        """Return the scores of an answer, and why some are missing, if some are."""
        given = {
            "answer": answer,
            "references": list(question.references),
            "reference": question.references[0] if question.references else "",
            "question": question.text,
            "found": list(found),
            "relevant": list(question.relevant),
            "k": k,
            "row": dict(question.row),
            "usage": dict(usage),
            "latency": latency,
            "cost": cost,
        }
        scores: dict[str, Score] = {}
        troubles = []
        for metric in self._metrics:
            try:
                scores[metric.name] = _checked(metric.function(**{name: given[name] for name in metric.asks}), metric)
            except Exception as error:  # a user's function may raise anything, and other items can be scored
                scores[metric.name] = None
                said = str(error) if isinstance(error, _NoScore) else f"raised {type(error).__name__}: {error}"
                troubles.append(f"metrics.{metric.name} {said}")
        return scores, "; ".join(troubles) or None


class _NoScore(Exception):
    """What a metric has returned is no score."""


def _load(name: str, node: Node) -> _Metric:
    own = {key: value for key, value in node.items() if key != "range"}
    function = resolve_function(own, f"metrics.{name}")
    asks = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in own or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.name in GIVEN:
            asks.append(parameter.name)
        elif parameter.default is parameter.empty:
            raise ConfigError(
                f"metrics.{name}: {own['_target_']} wants {parameter.name!r}, which nobody gives. It may ask for "
                f"{', '.join(GIVEN)}; others are set beside its _target_."
            )
    return _Metric(name, function, tuple(asks), range_of(node))


def _checked(value: Any, metric: _Metric) -> Score:
    if isinstance(value, tuple | list):
        if len(value) != 2:
            raise _NoScore(f"returned {value!r}; allowed: a number, or a numerator and a denominator")
        numerator, denominator = (_number(each, value) for each in value)
        if not math.isfinite(numerator) or not math.isfinite(denominator) or denominator < 0:
            raise _NoScore(f"returned {value!r}, which is no ratio")
        if denominator:
            _check_bounds(numerator / denominator, metric)
        return numerator, denominator
    number = _number(value, value)
    if not math.isfinite(number):
        raise _NoScore(f"returned {number}")
    _check_bounds(number, metric)
    return number


def _number(value: Any, returned: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise _NoScore(f"returned {returned!r}; allowed: a number, or a numerator and a denominator") from None


def _check_bounds(number: float, metric: _Metric) -> None:
    low, high = metric.bounds
    if (low is not None and number < low - 1e-9) or (high is not None and number > high + 1e-9):
        raise _NoScore(
            f"returned {number:g}, which is outside of {low} to {high}; "
            f"metrics.{metric.name}.range=[least,greatest] says what it may be"
        )
