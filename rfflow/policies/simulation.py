"""Runs as recorded learning curves: what a policy would do, in milliseconds and without training anything.

The scheduler is the real one, and so is the moment at which a policy is asked; only the trainers are missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rfflow.config.spec import Objective
from rfflow.control.journal import Past
from rfflow.control.ops import Clone, Op
from rfflow.control.overrides import expand
from rfflow.control.selection import select
from rfflow.errors import OpError
from rfflow.evals.comparison import Candidate
from rfflow.policies.scene import Decision, Policy, RunView, Scene
from rfflow.runs.ranking import Standing, best_first
from rfflow.scheduling.scheduler import Scheduler


@dataclass(frozen=True)
class Curve:
    """What a run would show if it trained to the end."""

    number: int
    metrics: tuple[Mapping[str, float], ...]
    """At the end of each chunk."""
    config: Mapping[str, Any] = field(default_factory=dict)
    fails_at: int | None = None
    """The chunk (from 0) in which it raises; a chunk that ``metrics`` does not have is not counted as spent."""
    parent: int | None = None
    """The run that a person cloned it from."""
    after: Mapping[int, int] = field(default_factory=dict)
    """Chunks that runs had done when it was made: it takes part once its parent has, and the others have or are out."""
    age: int = 0
    """Chunks behind its weights when it begins."""
    candidate: Candidate | None = None
    """Of an evaluation, the scores of its answers by the objective."""


@dataclass
class Outcome:
    """What came of a simulated experiment."""

    scene: Scene
    decisions: list[Decision]
    """As they were applied, in order; those that were refused are in ``refused``."""
    refused: list[tuple[Decision, str]]
    spent: int
    """Chunk-units trained."""
    order: list[tuple[int, int]]
    """(run, chunk), as they were trained."""

    @property
    def chosen(self) -> RunView | None:
        """The run that is best by the objective when all is over, as the runs table ranks them."""
        runs = [run for run in self.scene.runs if run.history and run.state not in ("failed", "deleted")]
        order = best_first([_standing(run) for run in runs], self.scene.objective)
        return self.scene.run(order[0]) if order else None


def simulate(
    curves: Sequence[Curve],
    policy: Policy,
    objective: Objective | None = None,
    name: str = "simulated",
    person: Mapping[int, Sequence[Op]] | None = None,
    clones: bool = True,
) -> Outcome:
    """Let a policy steer runs whose curves are known.

    Args:
        name: the policy's, in ``by: policy/<name>``.
        person: ops that a person gives, by how many chunks had been trained then; they come before the policy's.
        clones: let clones train along their parents' curves; otherwise they are noted and never made.
    """
    simulation = _Simulation(curves, policy, objective or Objective(), name, dict(person or {}), clones)
    return simulation.run()


class _Simulation:
    def __init__(
        self,
        curves: Sequence[Curve],
        policy: Policy,
        objective: Objective,
        name: str,
        person: dict[int, Sequence[Op]],
        clones: bool,
    ):
        self._curves = {curve.number: curve for curve in curves}
        self._policy = policy
        self._name = name
        self._person = person
        self._makes_clones = clones
        self._scheduler = Scheduler()
        self._views = {c.number: _view(c) for c in curves if c.parent is None}
        self._unborn = [c for c in curves if c.parent is not None]
        self._objective = objective
        self._limit = 1000 + 100 * sum(len(curve.metrics) for curve in curves)
        self._ops: list[Past] = []
        self._order: list[tuple[int, int]] = []
        self._decisions: list[Decision] = []
        self._refused: list[tuple[Decision, str]] = []

    def run(self) -> Outcome:
        for number, view in self._views.items():
            self._scheduler.add(number, view.chunks)
        while True:
            self._steer()
            if len(self._order) > self._limit:
                raise ValueError(f"The policy has trained {len(self._order)} chunks and finds no end.")
            assignment = self._scheduler.next()
            if assignment is None:
                break
            self._train(assignment.run)
            if assignment.run in self._scheduler:
                self._scheduler.finish(assignment)
        return Outcome(self._scene(), self._decisions, self._refused, len(self._order), self._order)

    def _train(self, number: int) -> None:
        view, curve = self._views[number], self._curves[number]
        if view.chunk < len(curve.metrics):
            self._order.append((number, view.chunk))
        if curve.fails_at == view.chunk:
            self._views[number] = replace(view, state="failed")
            self._scheduler.remove(number)
            return
        history = (*view.history, curve.metrics[view.chunk])
        state = "completed" if len(history) == view.chunks else "running"
        candidate = curve.candidate
        if candidate is not None:
            candidate = replace(candidate, scores=candidate.scores[: candidate.looks[len(history) - 1]])
        self._views[number] = replace(view, history=history, state=state, age=view.age + 1, candidate=candidate)

    def _steer(self) -> None:
        for op in self._person.pop(len(self._order), ()):
            self._apply(op, "person")
        self._bear()
        scene = self._scene()
        for decision in self._policy.decide(scene):
            by = f"policy/{self._name}" + (f"/{decision.rule}" if decision.rule else "")
            try:
                self._apply(decision.op, by)
            except OpError as error:
                self._refused.append((decision, str(error)))
            else:
                self._decisions.append(decision)

    def _apply(self, op: Op, by: str) -> None:
        candidates = [_Candidate(view) for view in self._views.values()]
        for number in select(op, candidates, self._objective):
            view = self._views[number]
            if by != "person" and not isinstance(op, Clone) and self._scene().is_in_hand(number):
                raise OpError(f"Run {number} is in a person's hands.")
            self._ops.append(Past(op.verb, number, by, view.chunk))
            match op.verb:
                case "stop":
                    self._scheduler.stop(number)
                    self._views[number] = replace(view, state="stopped")
                case "resume":
                    self._scheduler.resume(number)
                    self._views[number] = replace(view, state="running" if view.history else "queued")
                case "delete":
                    self._scheduler.remove(number)
                    self._views[number] = replace(view, state="deleted")
                case "clone" if self._makes_clones:
                    self._clone(op, view)

    def _bear(self) -> None:
        """Let the clones take part whose moment has come."""
        for curve in list(self._unborn):
            parent = None if curve.parent is None else self._views.get(curve.parent)
            if parent is None or parent.chunk < curve.after.get(parent.number, 0):
                continue
            others = [view for number in curve.after if (view := self._views.get(number)) is not None]
            if not any(view.is_live and view.chunk < curve.after[view.number] for view in others):
                self._unborn.remove(curve)
                self._views[curve.number] = _view(curve)
                self._scheduler.add(curve.number, self._views[curve.number].chunks)
                self._ops.append(Past("clone", parent.number, "person", parent.chunk))

    def _clone(self, op: Op, parent: RunView) -> None:
        """Nobody knows what a clone would have done; it goes along its parent's curve again, under another number."""
        assert isinstance(op, Clone)
        age = parent.age if op.warm_start else 0
        for overrides in expand(op.overrides):
            number = max(*self._views, *self._curves) + 1
            self._curves[number] = replace(self._curves[parent.number], number=number, fails_at=None)
            config = _with(parent, overrides)
            self._views[number] = RunView(number, "queued", parent.chunks, (), config, parent.number, age)
            self._scheduler.add(number, parent.chunks)

    def _scene(self) -> Scene:
        return Scene(tuple(self._views.values()), self._objective, tuple(self._ops))


def _view(curve: Curve) -> RunView:
    chunks = max(len(curve.metrics), -1 if curve.fails_at is None else curve.fails_at + 1)
    return RunView(curve.number, "queued", chunks, (), curve.config, curve.parent, curve.age)


@dataclass(frozen=True)
class _State:
    value: str


class _Candidate:
    def __init__(self, view: RunView):
        self.number = view.number
        self.state = _State(view.state)
        self.metrics = view.metrics
        self.standing = _standing(view)


def _standing(view: RunView) -> Standing:
    if view.candidate is None:
        return Standing(view.number, view.metrics)
    # One that was stopped in what is replayed has no more chunks, and has not had all questions.
    is_rough = not view.is_live and view.chunk < len(view.candidate.looks)
    return Standing(view.number, view.metrics, tuple(zip(view.candidate.looks, view.history, strict=False)), is_rough)


def _with(parent: RunView, overrides: Sequence[str]) -> dict[str, Any]:
    config = dict(parent.config)
    for override in overrides:
        key, _, value = override.partition("=")
        try:
            config[key] = float(value)
        except ValueError:
            config[key] = value
    return config
