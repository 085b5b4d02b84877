"""The policy of one experiment: shows it the runs, and keeps it away from those that people have taken in hand."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import replace

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from rfflow.config.spec import Node
from rfflow.config.targets import check_node, import_object
from rfflow.control.journal import Entry, Past
from rfflow.control.ops import Clone
from rfflow.control.selection import Numbers, select
from rfflow.errors import ConfigError, OpError
from rfflow.evals.comparison import Candidate
from rfflow.policies.scene import Decision, Policy, RunView, Scene
from rfflow.runs.experiment import Experiment
from rfflow.runs.run import Run
from rfflow.tracking.differences import candidate, shares_of

log = logging.getLogger(__name__)

Imagined = tuple[int, Past]


class PolicyRunner:
    """Asks a policy at every boundary what to do.

    Args:
        entries: the journal so far, where the experiment goes on.
        imagined: what :attr:`imagined` was there, in a dry run.

    Raises:
        ConfigError: if the policy cannot be made.
    """

    def __init__(
        self, node: Node, experiment: Experiment, entries: Iterable[Entry] = (), imagined: Iterable[Imagined] = ()
    ):
        self._policy, self.name, self.is_dry = make_policy(node)
        self._experiment = experiment
        self._histories: dict[int, list[Mapping[str, float]]] = {}
        self._ops: list[Past] = []
        self._ages: dict[int, int] = {}
        """Chunks that clones have behind them by their parents."""
        self._dry: dict[int, tuple[str, int]] = {}
        """States of runs, and chunks done, as they would be had a dry run's ops been applied."""
        self._asked: object = None
        self._said: set[tuple[str, str, str]] = set()
        """Who asked for which op, and what was said of it."""
        self.imagined: list[Imagined] = []
        """Ops of a dry run, each with its place among all ops: no journal has them."""
        self.note(entries)
        for place, op in imagined:
            self._imagine(op, place)
        views = [self._view(run) for run in experiment.runs]
        if (check := getattr(self._policy, "check", None)) is not None:
            check(views)
        reads = getattr(self._policy, "reads", None)
        self.reads: Mapping[str, str] = {} if reads is None else reads(views)
        """The metrics that the policy will ask for by name, and what in it does."""

    def decide(self) -> list[Decision]:
        """Return what the policy asks for now, less what a person has settled; nothing where nothing has happened."""
        runs = self._experiment.runs
        moment = [(run.number, run.state, len(run.chunks)) for run in runs]
        if moment == self._asked:
            return []
        self._asked = moment
        scene = self._scene()
        try:
            decisions = list(self._policy.decide(scene))
        except Exception:  # a user's own, perhaps; hours of training must not end by it
            log.exception("The policy %s failed and is off from now on.", self.name)
            self._policy = _Off()
            return []
        allowed = [kept for decision in decisions if (kept := self._respecting(decision, scene)) is not None]
        return self._only_said(allowed) if self.is_dry else allowed

    def by(self, decision: Decision) -> str:
        """Return who asked, for the journal."""
        return f"policy/{self.name}/{decision.rule}" if decision.rule else f"policy/{self.name}"

    def note(self, entries: Iterable[Entry]) -> None:
        """Take note of ops, whoever issued them."""
        for entry in entries:
            if entry.outcome == "refused" and entry.stamp is not None:
                self._said.add((entry.by, entry.stamp, entry.detail))
            if entry.outcome != "applied" or entry.run is None:
                continue
            self._ops.append(Past(entry.op, entry.run, entry.by, entry.chunk))
            if entry.clone is not None:
                age = self._ages.get(entry.run, 0) + (entry.chunk or 0)
                self._ages[entry.clone] = age if entry.is_warm else 0

    def refuse(self, decision: Decision, reason: str) -> bool:
        """Return whether a refusal is news: a policy that asks again and again is told once."""
        line = (self.by(decision), stamp(decision), reason)
        is_news = line not in self._said
        self._said.add(line)
        return is_news

    def stopped(self, run: Run) -> bool:
        """Whether it was a policy that stopped the run: nobody needs to wait for a person then."""
        return (self._scene().stopped_by(run.number) or "person") != "person"

    def _respecting(self, decision: Decision, scene: Scene) -> Decision | None:
        op = decision.op
        if isinstance(op, Clone):
            return decision
        try:
            numbers = select(op, self._experiment.runs, scene.objective)
        except OpError:
            return decision  # the answer will say why
        free = tuple(number for number in numbers if not scene.is_in_hand(number))
        if free == numbers:
            return decision
        return replace(decision, op=replace(op, target=Numbers(free))) if free else None

    def _only_said(self, decisions: list[Decision]) -> list[Decision]:
        for decision in decisions:
            if self.refuse(decision, "dry run"):
                for run in self._runs_of(decision):
                    log.info("Policy %s would %s run %s: %s.", self.name, decision.op.verb, run.number, decision.why)
                    chunks = self._dry.get(run.number, ("", len(run.chunks)))[1]
                    self._imagine(Past(decision.op.verb, run.number, self.by(decision), chunks), len(self._ops))
        return []

    def _imagine(self, op: Past, place: int) -> None:
        self.imagined.append((place, op))
        self._ops.insert(place, op)
        if op.verb == "resume":
            self._dry.pop(op.run, None)
        elif op.verb in ("stop", "delete"):
            self._dry[op.run] = ("stopped" if op.verb == "stop" else "deleted", op.chunk or 0)

    def _runs_of(self, decision: Decision) -> list[Run]:
        target = decision.op.target
        if isinstance(target, Numbers):
            return [self._experiment.run(number) for number in target.numbers]
        try:
            numbers = select(decision.op, self._experiment.runs, self._experiment.spec.objective)
        except OpError:
            return []
        return [self._experiment.run(number) for number in numbers]

    def _scene(self) -> Scene:
        views = tuple(self._view(run) for run in self._experiment.runs)
        return Scene(views, self._experiment.spec.objective, tuple(self._ops))

    def _view(self, run: Run) -> RunView:
        state, chunks = self._dry.get(run.number, (run.state.value, len(run.chunks)))
        history = tuple(self._history(run)[:chunks])
        return RunView(
            run.number,
            state,
            0 if run.plan is None else len(run.plan),
            history,
            run.spec.config,
            run.parent,
            self._ages.get(run.number, 0) + len(history),
            self._candidate(run) if getattr(self._policy, "reads_scores", False) else None,
        )

    def _candidate(self, run: Run) -> Candidate | None:
        share = shares_of(self._experiment.runs).get(run.number, 0.0)
        return candidate(run, self._experiment.spec.objective.metric.removeprefix("eval_"), share)

    def _history(self, run: Run) -> list[Mapping[str, float]]:
        known = self._histories.setdefault(run.number, [])
        known += [result.metrics for result in run.chunks[len(known) :]]
        return known


def stamp(decision: Decision) -> str:
    """Return what tells the op from others of the same policy, for the journal."""
    return f"{zlib.crc32(ascii(decision.op).encode()):08x}"


class _Off:
    def decide(self, scene: Scene) -> list[Decision]:
        return []


def make_policy(node: Node) -> tuple[Policy, str, bool]:
    """Return a policy, its name in the journal, and whether it only says what it would do.

    Raises:
        ConfigError: if the policy cannot be made.
    """
    settings = dict(node)
    dry_run, name = settings.pop("dry_run", False), settings.pop("name", None)
    target = str(settings.get("_target_"))
    if not isinstance(dry_run, bool):
        raise ConfigError(f"policy.dry_run is {dry_run!r}. Allowed: true, false.")
    name = str(name or target.rpartition(".")[2].lower())
    import_object(target, "policy._target_")  # for its better message
    check_node(settings, "policy")
    try:
        make = instantiate({"_target_": settings.pop("_target_"), "_partial_": True})
        # Hydra would take the expressions of rules for its own references, so it does not see them.
        policy = make(**settings)
    except (InstantiationException, TypeError, ValueError) as error:
        raise ConfigError(f"policy: cannot make {target!r}: {error.__cause__ or error}") from error
    if not callable(getattr(policy, "decide", None)):
        raise ConfigError(f"policy: {target!r} has no method decide(scene). rfflow.policies.Policy says what it is.")
    return policy, name, dry_run
