"""Which runs a rule chooses among those that it may act on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rfflow.config.spec import Objective
from rfflow.control.journal import Past
from rfflow.control.ops import VERBS
from rfflow.control.selection import Ranked, Selection, select
from rfflow.errors import OpError
from rfflow.policies.rule import Rule
from rfflow.policies.scene import RunView, Scene


def chunks_of(rule: Rule, scene: Scene) -> list[int | None]:
    """Return the chunks at which a rule is to be asked now; None is each run's own boundary."""
    if rule.at_chunk is not None:
        return [rule.at_chunk] if scene.is_due(rule.at_chunk) else []
    if rule.every is not None:
        most = max((run.chunk for run in scene.runs), default=0)
        due = range(rule.every, most + 1, rule.every)
        return [chunk for chunk in due if scene.is_due(chunk)]
    return [None]


def can_act(rule: Rule, run: RunView, past: Sequence[Past]) -> bool:
    """Whether a rule may act on a run, given its own ops so far."""
    if run.state not in VERBS[rule.do].acts_on or any(op.run == run.number and op.chunk == run.chunk for op in past):
        return False
    if rule.do != "clone":
        return rule.at_chunk is not None or rule.every is not None or run.is_live or rule.do == "resume"
    if rule.every is not None:
        return True
    # Once, and no clones of its own clones: there would be no end of them.
    return not past if rule.at_chunk is not None else all(op.run not in (run.number, run.parent) for op in past)


@dataclass(frozen=True)
class _Candidate:
    """A run as it stood at a chunk, for the selection that ops know too."""

    number: int
    metrics: Mapping[str, float]
    state: Any


@dataclass(frozen=True)
class _Able:
    value: str = "able"


@dataclass(frozen=True)
class _Choice:
    verb: str
    target: Selection
    acts_on: tuple[str, ...] = ("able",)


def choose(rule: Rule, runs: Sequence[RunView], chunk: int | None, objective: Objective) -> list[RunView]:
    """Return whom a rule selects; a share of less than one run is nobody.

    Raises:
        OpError: if they cannot be ranked.
    """
    if not isinstance(rule.select, Ranked) or not runs:
        return list(runs)
    candidates = [_Candidate(run.number, run.history[(chunk or run.chunk) - 1], _Able()) for run in runs]
    everybody = replace(rule.select, count=len(runs), percent=None)
    ranked = select(_Choice(rule.do, everybody), candidates, objective)
    try:
        target = rule.select
        if target.count is not None:
            target = replace(target, count=min(target.count, len(runs)))
        numbers = ranked[: len(select(_Choice(rule.do, target), candidates, objective))]
    except OpError:
        numbers = ()
    return [run for number in numbers for run in runs if run.number == number]
