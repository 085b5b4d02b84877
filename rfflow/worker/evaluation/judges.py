"""The judges of a run: after each shard they are asked about the answers in it, many at a time."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rfflow.config.fields import whole_number
from rfflow.config.spec import Node
from rfflow.errors import ConfigError
from rfflow.evals.items import Item
from rfflow.evals.judging import Judge
from rfflow.evals.prompts import Messages
from rfflow.evals.questions import Question
from rfflow.evals.retrieval import make
from rfflow.runs.forecast import Forecast
from rfflow.worker.evaluation.replies import Batches, Replies, Reply, calls, forecast_of


@dataclass(frozen=True)
class Judging:
    """One judge, and what answers for it."""

    name: str
    judge: Judge
    replies: Replies
    generator: Any = None
    """What answers."""

    @property
    def section(self) -> str:
        """Where it stands in the configuration."""
        return f"metrics.{self.name}"

    def begin(self, questions: Sequence[Question], items: Mapping[int, Item], put: Callable[[Item], None]) -> None:
        """Begin to have answers judged; ``replies.next()`` waits for some.

        Args:
            questions: all of them, in their order.
            items: what is not judged yet, by position.
            put: takes each item with its score, the moment that it is there, from whatever thread.
        """
        asked = {place: self.judge.messages(questions[place], item.answer or "") for place, item in items.items()}
        self.replies.begin(asked, lambda place, reply: put(self._judged(items[place], reply)))

    def forecast(self, questions: Sequence[Question], places: Collection[int]) -> Forecast:
        """Return what is about to be asked, with the references in the place of answers that nobody knows yet."""
        return forecast_of(self.generator, _examples(self.judge, [questions[place] for place in places]))

    def _judged(self, item: Item, reply: Reply) -> Item:
        score, trouble = None, reply.error
        if reply.text is not None:
            try:
                score = self.judge.score(reply.text)
            except Exception as error:  # a user's own may raise anything
                trouble = str(error)
        usage = {**item.usage}
        if reply.usage:
            usage[f"{self.name}_tokens"] = sum(reply.usage.values())
        said = [each for each in (item.error, trouble and f"metrics.{self.name}: {trouble}") if each]
        return replace(
            item,
            scores={**item.scores, self.name: score},
            usage=usage,
            cost=item.cost + reply.cost,
            paid={self.section: reply.cost} if reply.cost else {},
            error="; ".join(said) or None,
        )


def make_judging(
    name: str, node: Node, questions: Sequence[Question], generator_of: Callable[[Node, str], Any]
) -> Judging:
    """Return a judge, having looked at what it will ask.

    Args:
        name: of the metric.
        node: its section, with ``generator`` in it, a section like ``generator``.
        questions: what is scored.
        generator_of: makes what answers, of a section and where that stands.

    Raises:
        ConfigError: for whatever cannot be.
    """
    where = f"metrics.{name}"
    given = {key: value for key, value in node.items() if key not in ("generator", "range")}
    section = node.get("generator")
    if not isinstance(section, Mapping) or not isinstance(section.get("_target_"), str):
        raise ConfigError(f"{where}.generator is {section!r}. A judge wants a model: what the section generator takes.")
    of_model = {key: value for key, value in section.items() if value is not None}
    concurrency = whole_number(of_model.pop("concurrency", 8), f"{where}.generator.concurrency")
    try:
        judge = make(given, where)
        if callable(getattr(judge, "check", None)):
            judge.check(questions)
    except ConfigError as error:
        raise ConfigError(str(error) if str(error).startswith(where) else f"{where}.{error}") from error
    try:
        generator = generator_of(of_model, f"{where}.generator")
        if callable(getattr(generator, "check", None)):
            generator.check(_examples(judge, questions), [each.id for each in questions])
    except ConfigError as error:  # of one who takes himself for the section generator
        said = re.sub(r"(?<![\w.])generator(?=[.:])", f"{where}.generator", str(error))
        raise ConfigError(said if where in said else f"{where}.generator: {said}") from error
    is_batched = callable(getattr(generator, "generate", None))
    replies = Batches(generator) if is_batched else calls(generator, concurrency)
    return Judging(name, judge, replies, generator)


def _examples(judge: Judge, questions: Sequence[Question]) -> list[Messages]:
    """Return what a judge would be sent if the answers were the references."""
    return [judge.messages(each, each.references[0] if each.references else "") for each in questions]
