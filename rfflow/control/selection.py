"""Which runs an op means, and which of them that turns out to be."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from rfflow.config.spec import Objective
from rfflow.errors import OpError, nearest
from rfflow.runs.ranking import Standing, best_first

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 120
_repr.maxlong = 40
_repr.maxlist = _repr.maxdict = 8


def shown(value: object) -> str:
    """Return the value for an error message, cut where it is long."""
    try:
        return _repr.repr(value)
    except ValueError:  # an integer longer than Python prints
        return f"a very long {type(value).__name__}"


@dataclass(frozen=True)
class Numbers:
    """Runs by their numbers, in the order given."""

    numbers: tuple[int, ...]

    def to_document(self) -> int | list[int]:
        """Return what stands behind ``run:``."""
        return self.numbers[0] if len(self.numbers) == 1 else list(self.numbers)


@dataclass(frozen=True)
class Everything:
    """Every run that the op can act on."""

    def to_document(self) -> str:
        """Return what stands behind ``run:``."""
        return "all"


@dataclass(frozen=True)
class Ranked:
    """The best or the worst, by a metric, of the runs that the op can act on."""

    end: str
    """``best`` or ``worst``."""
    count: int | None = None
    """How many; ``None`` where ``percent`` says."""
    percent: float | None = None
    """A share of the runs that the op can act on, above 0 and up to 100."""
    by: str | None = None
    """The metric; ``None`` means the experiment's objective."""
    direction: str | None = None
    """``minimize`` or ``maximize``; ``None`` is known for the objective's metric and for losses."""

    def to_document(self) -> dict[str, Any]:
        """Return what stands behind ``run:``."""
        document: dict[str, Any] = {self.end: self.count if self.count is not None else f"{self.percent!r}%"}
        if self.by is not None:
            document["by"] = self.by
        if self.direction is not None:
            document["direction"] = self.direction
        return document


Selection = Numbers | Everything | Ranked


class _State(Protocol):
    @property
    def value(self) -> Any: ...


class Candidate(Protocol):
    """What is looked at in a run; :class:`rfflow.runs.run.Run` is one."""

    @property
    def number(self) -> int: ...
    @property
    def state(self) -> _State: ...
    @property
    def metrics(self) -> Mapping[str, float]: ...


class _Op(Protocol):
    @property
    def verb(self) -> str: ...
    @property
    def acts_on(self) -> tuple[str, ...]: ...
    @property
    def target(self) -> Selection: ...


# --- from a document --------------------------------------------------------------------------------------------------

_ALLOWED = "a number, a list of numbers, all, {best: 2, by: eval_loss} or {worst: 50%}"
_LIMIT = 10**9  # an integer that Python refuses to print would break the journal
_PERCENT = re.compile(r"(\d{1,3}(?:\.\d{1,17})?(?:e-\d{1,3})?)\s*%")


def parse_selection(value: object) -> Selection:
    """Read what stands behind ``run:``.

    Raises:
        OpError: where it names no runs.
    """
    if value == "all":
        return Everything()
    if isinstance(value, Mapping):
        return _parse_ranked(value)
    if isinstance(value, list):
        if not value:
            raise OpError(f"run is an empty list. Allowed: {_ALLOWED}.")
        numbers = [_run_number(item) for item in value]
        for number in numbers:
            if numbers.count(number) > 1:
                raise OpError(f"run names {number} more than once: {shown(value)}.")
        return Numbers(tuple(numbers))
    return Numbers((_run_number(value),))


def _run_number(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _LIMIT:
        raise OpError(f"run is {shown(value)}. Allowed: {_ALLOWED}; runs are numbered from 0.")
    return value


def _parse_ranked(value: Mapping[Any, Any]) -> Ranked:
    allowed = ("best", "worst", "by", "direction")
    for key in value:
        if key not in allowed:
            hint = nearest(key, allowed) if isinstance(key, str) else ""
            raise OpError(f"run has no key {shown(key)}.{hint} Allowed: {', '.join(allowed)}.")
    ends = [key for key in ("best", "worst") if key in value]
    if len(ends) != 1:
        raise OpError(
            f"run is {shown(dict(value))}. Allowed: either best or worst, such as {{best: 2, by: eval_loss}}."
        )
    by, direction = value.get("by"), value.get("direction")
    if "by" in value and (not isinstance(by, str) or not by):
        raise OpError(f"by is {shown(by)}. Allowed: the name of a metric, such as eval_loss.")
    if "direction" in value and direction not in ("minimize", "maximize"):
        raise OpError(f"direction is {shown(direction)}. Allowed: minimize, maximize.")
    count, percent = _parse_amount(ends[0], value[ends[0]])
    return Ranked(ends[0], count, percent, by, direction)


def _parse_amount(end: str, value: object) -> tuple[int | None, float | None]:
    if isinstance(value, str) and (match := _PERCENT.fullmatch(value)) and 0 < float(match[1]) <= 100:
        return None, float(match[1])
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < _LIMIT:
        raise OpError(f"{end} is {shown(value)}. Allowed: a whole number from 1 up, or a share such as 50%.")
    return value, None


# --- to run numbers ---------------------------------------------------------------------------------------------------


def select(op: _Op, runs: Iterable[Candidate], objective: Objective) -> tuple[int, ...]:
    """Return the numbers of the runs that an op means now, each of which the op can act on.

    Numbers keep the order given; ``all`` goes by number; ``best`` and ``worst`` begin with the best or the worst. These
    choose among the runs that the op can act on. A diverged run (NaN) is worse than any other. A run that has not
    logged the metric at its last boundary or since cannot be ranked, so it is taken last from either end. Ties go by
    number. A share rounds up for ``best`` and down for ``worst``: the two never overlap, and ``worst: 50%`` of a single
    run is nobody.

    Raises:
        OpError: where a run does not exist or is in the wrong state, or where nobody is meant.
    """
    runs = sorted(runs, key=lambda run: run.number)
    able = [run for run in runs if run.state.value in op.acts_on]
    target = op.target
    if isinstance(target, Numbers):
        _check_numbers(op, target, runs, able)
        return target.numbers
    if not able:
        raise OpError(f"No run can be {_PAST[op.verb]}. {_who_can(op, able)} Runs: {_by_state(runs)}.")
    if isinstance(target, Everything):
        return tuple(run.number for run in able)
    ranked = _rank(op, target, able, objective)
    return tuple(run.number for run in ranked[: _amount(op, target, able)])


_PAST = {"stop": "stopped", "resume": "resumed", "clone": "cloned", "delete": "deleted"}


def _check_numbers(op: _Op, target: Numbers, runs: Sequence[Candidate], able: Sequence[Candidate]) -> None:
    states = {run.number: run.state.value for run in runs}
    for number in target.numbers:
        if number not in states:
            raise OpError(f"Cannot {op.verb} run {shown(number)}: no such run. Runs: {spans(states) or 'none'}.")
        if states[number] not in op.acts_on:
            raise OpError(f"Cannot {op.verb} run {number}: it is {states[number]}. {_who_can(op, able)}")


def _rank(op: _Op, target: Ranked, able: Sequence[Candidate], objective: Objective) -> list[Candidate]:
    by = target.by or objective.metric
    objective = replace(objective, metric=by, direction=_direction(target, by, objective))
    # The training loss that stands in for eval_loss is compared with its own kind only.
    standing = objective.standing(run.metrics for run in able).metric
    values = {run.number: run.metrics.get(standing) for run in able}
    if all(value is None for value in values.values()):
        seen = sorted({name for run in able for name in run.metrics})
        raise OpError(
            f"Cannot {op.verb} the {target.end} by {by}: none of the runs {spans(values)} has logged it."
            f"{nearest(by, seen)} Metrics seen: {', '.join(seen) or 'none yet'}."
        )
    if any(standing_of(run).past for run in able):
        return _rank_evaluations(target, able, values, objective)
    toward_worst = 1.0 if objective.direction == "minimize" else -1.0

    def key(run: Candidate) -> tuple[bool, float, int]:
        value = values[run.number]
        if value is None:
            return (True, 0.0, run.number)
        badness = math.inf if value != value else toward_worst * value
        return (False, badness if target.end == "best" else -badness, run.number)

    return sorted(able, key=key)


def _rank_evaluations(
    target: Ranked, able: Sequence[Candidate], values: Mapping[int, float | None], objective: Objective
) -> list[Candidate]:
    """Rank where some are evaluations: on the questions that both of any two have had."""
    known = [run for run in able if values[run.number] is not None]
    order = best_first([standing_of(run) for run in known], objective)
    there = {run.number: run for run in known}
    ranked = [there[number] for number in (order if target.end == "best" else reversed(order))]
    return ranked + [run for run in able if values[run.number] is None]


def standing_of(run: Candidate) -> Standing:
    """Return what ranks a run, whose questions may be known."""
    found = getattr(run, "standing", None)
    return found if isinstance(found, Standing) else Standing(run.number, run.metrics)


def _direction(target: Ranked, by: str, objective: Objective) -> Any:
    if target.direction is not None:
        return target.direction
    if by == objective.metric:
        return objective.direction
    if by == "loss" or by.endswith("_loss"):
        return "minimize"
    raise OpError(
        f"Is a high {by} good or bad? The objective is {objective.metric}, so say direction: minimize or maximize."
    )


def _amount(op: _Op, target: Ranked, able: Sequence[Candidate]) -> int:
    who = spans(run.number for run in able)
    if target.count is not None:
        if target.count > len(able):
            raise OpError(
                f"Cannot {op.verb} the {target.end} {shown(target.count)}: only {len(able)} can be "
                f"{_PAST[op.verb]} ({who})."
            )
        return target.count
    assert target.percent is not None
    share = round(len(able) * target.percent / 100, 9)  # 29 % of 100 is 29, whatever binary fractions say
    amount = math.ceil(share) if target.end == "best" else math.floor(share)
    if amount == 0:
        raise OpError(
            f"Cannot {op.verb} the {target.end} {target.percent:g}%: that is less than one of the {len(able)} that can "
            f"be {_PAST[op.verb]} ({who})."
        )
    return amount


def _who_can(op: _Op, able: Sequence[Candidate]) -> str:
    states = " or ".join([", ".join(op.acts_on[:-1]), op.acts_on[-1]] if len(op.acts_on) > 1 else op.acts_on)
    who = spans(run.number for run in able) or "none now"
    return f"A run to {op.verb} is {states}: {who}."


def _by_state(runs: Sequence[Candidate]) -> str:
    states = dict.fromkeys(run.state.value for run in runs)
    words = [f"{spans(r.number for r in runs if r.state.value == state)} {state}" for state in states]
    return ", ".join(words) or "none"


def spans(numbers: Iterable[int]) -> str:
    """Write run numbers shortly: ``0-3, 5``."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)
