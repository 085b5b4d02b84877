"""Are the metrics there that rank the runs or that policies read? Asked before training where that can be known."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from rfflow.config.spec import Objective
from rfflow.errors import ConfigError, nearest

log = logging.getLogger(__name__)


class Known(Protocol):
    """What is known of a run's metrics; :class:`rfflow.runs.events.ExpectedMetrics` is one."""

    @property
    def names(self) -> frozenset[str]:
        """Metrics it will log."""

    @property
    def offered(self) -> frozenset[str]:
        """Those of them that people may be offered."""

    @property
    def evaluates(self) -> bool:
        """Whether anything is evaluated."""

    @property
    def evaluation_sets(self) -> tuple[str, ...]:
        """The names of several evaluation sets."""

    def may_have(self, metric: str) -> bool:
        """Whether it may log a metric."""
        ...


class MetricsCheck:
    """Watches over the objectives, which it also looks for at boundaries, and over what policies read.

    Args:
        objective: what ranks the runs.
        searched: what a search weighs against each other.
    """

    def __init__(self, objective: Objective, searched: Sequence[Objective] = ()):
        self._watched = {f"search.objectives[{index}].metric": each for index, each in enumerate(searched)}
        self._watched["objective.metric"] = objective
        self._missing = dict(self._watched)
        self._runs: dict[int, Known] = {}
        self._is_done = False
        self._has_said_what_stands_in = False

    def note(self, run: int, known: Known | None) -> None:
        """Remember what is known of a run; ``None`` is nothing."""
        if known is None:
            self._is_done = True  # it may log anything
        elif not self._is_done:
            self._runs[run] = known

    def check(self, read: Mapping[str, str] | None = None) -> None:
        """Look before training, and say it where the training loss stands in for ``eval_loss``.

        Args:
            read: who else reads metrics, by metric: ``{"eval_loss": "Rule 'weak'"}``.

        Raises:
            ConfigError: if no run will log one of them.
        """
        if self._is_done or not self._runs:
            return
        for key, objective in self._watched.items():
            if objective.metric == "eval_loss":
                self._say_what_stands_in()
            else:
                self._check(objective.metric, f"{key} is")
        for metric, reader in (read or {}).items():
            self._check(metric, f"{reader} reads")

    def _say_what_stands_in(self) -> None:
        sets = next((known.evaluation_sets for known in self._runs.values() if known.evaluation_sets), ())
        if sets and not self._has_said_what_stands_in:
            self._has_said_what_stands_in = True
            losses = [f"eval_{name}_loss" for name in sets]
            log.info(
                "eval_loss, which ranks the runs, is the mean of %s. To rank by one of them: objective.metric=%s",
                " and ".join(losses),
                losses[0],
            )
        evaluated = any(known.evaluates and known.may_have("eval_loss") for known in self._runs.values())
        if evaluated or self._has_said_what_stands_in:
            return
        self._has_said_what_stands_in = True
        log.info(
            "Nothing is evaluated: the training loss stands in for eval_loss, which ranks the runs. To evaluate, give "
            "rows to do so on (dataset.eval_path, eval_split or eval_size), and leave evaluate=true."
        )

    def _check(self, metric: str, words: str) -> None:
        if any(known.may_have(metric) for known in self._runs.values()):
            return
        scored = metric.removeprefix("eval_") in ("exact_match", "rouge_l", "bleu")
        if metric.startswith("eval_") and scored:
            raise ConfigError(
                f"{words} {metric!r}, a score of generated answers, and no run scores any that way. Say "
                f"evaluation.generate.samples=16 evaluation.generate.scores=[rfflow.scores.{metric[5:]}]."
            )
        names = frozenset[str]().union(*(known.offered for known in self._runs.values()))
        if metric.startswith("eval_") and not any(known.evaluates for known in self._runs.values()):
            alone = metric.removeprefix("eval_")
            hint = f" Without evaluation there is {alone!r}." if alone in names else ""
            raise ConfigError(
                f"{words} {metric!r}, and nothing is evaluated. Give dataset.eval_path, eval_split or "
                f"eval_size, and leave evaluate=true.{hint}"
            )
        raise ConfigError(f"{words} {metric!r}, which no run will log.{_offer(metric, names)}")

    def look(self, run: int, metrics: Mapping[str, float]) -> None:
        """Look at what a run has logged up to a boundary; warn once of an objective that is not among it."""
        if self._is_done:
            return
        for key, objective in list(self._missing.items()):
            metric = objective.metric
            if objective.value(metrics) is not None:
                del self._missing[key]
                continue
            if run in self._runs and f"{metric}_low" in self._runs[run].names:
                continue  # an evaluation none of whose items has a score so far, which is said where they are read
            kind = metric.startswith("eval_")
            # A trainer may log, or evaluate, less often than chunks end.
            if any(name.startswith("eval_") == kind for name in metrics if name != "generation_share"):
                del self._missing[key]
                log.warning(
                    "Run %s has not logged %s, %r, so that there is nothing to rank it by.%s",
                    run,
                    key,
                    metric,
                    _offer(metric, metrics),
                )
        self._is_done = not self._missing


def _offer(metric: str, names: Iterable[str]) -> str:
    alike = sorted(name for name in names if name.startswith("eval_") == metric.startswith("eval_"))
    return f"{nearest(metric, alike) or nearest(metric, names)} There are: {', '.join(alike) or 'none of that kind'}."
