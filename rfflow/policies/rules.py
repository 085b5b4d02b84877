"""Rules that a team writes down: when, for which runs, do what.

::

    rules:
      - {name: weak, at_chunk: 2, select: {worst: 50%, by: eval_loss}, do: stop}
      - {name: sick, when: "loss > 3 * best.loss", do: delete}
      - {name: refine, at_chunk: 4, select: {best: 1}, do: clone, overrides: ["lr=${parent.lr * 0.5}"]}

A rule with ``at_chunk`` (or ``every``: at each multiple) is asked when all runs that can still reach that chunk are
there; it looks at what they had then. Without either it is asked about a run at each of its boundaries. ``when`` must
hold for the run, ``select`` chooses among those for which it does. No rule acts twice on a run at the same chunk, and a
rule without ``every`` clones a run once; ``times`` limits how often it acts in all.

Names in expressions: the run's metrics by the trainer's names (``loss``, ``eval_loss``), the keys of its configuration
(``lr``, ``peft.r``), ``chunk`` and ``chunks``, ``age`` (chunks behind its weights, its ancestors' among them),
``number``, ``live`` (runs that are queued or running), and the same after ``best.`` (the run that leads at that
chunk), ``previous.`` (the run itself, one chunk before; metrics only) and, for a run that is a clone, ``origin.`` (the
run it was made from). In the overrides of a clone ``parent.`` is the run that is cloned. A condition about something
that has not been logged does not hold.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rfflow.control.ops import parse
from rfflow.control.selection import Ranked
from rfflow.errors import ConfigError, OpError, nearest
from rfflow.policies.choosing import can_act, choose, chunks_of
from rfflow.policies.expressions import Unknown, look_up
from rfflow.policies.rule import Rule, read_file, read_rule
from rfflow.policies.scene import Decision, RunView, Scene

log = logging.getLogger(__name__)


class Rules:
    """Apply rules, each in its turn, to the runs for whom they hold.

    Args:
        rules: the rules as mappings; their keys are those of :class:`Rule`.
        file: a YAML file with more of them, as a list or under the key ``rules``. In Hydra's own configuration files
            ``${`` belongs to Hydra, so there an expression in an override begins with a backslash: ``\\${``.
    """

    def __init__(self, rules: Sequence[Mapping[str, Any]] | None = None, file: str | None = None):
        documents = [*(rules or ()), *(read_file(file) if file else ())]
        if not documents:
            raise ConfigError("policy.rules is empty. Write some, or name a YAML file of rules: policy.file=rules.yaml")
        self.rules = tuple(read_rule(document, number) for number, document in enumerate(documents, 1))
        names = [rule.name for rule in self.rules]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"Two rules are called {name!r}. Give each a name of its own: the journal shows it.")
        self._missed: set[tuple[str, str]] = set()

    def check(self, runs: Sequence[RunView]) -> None:
        """Check what can be known before training: that templates find what they read in some configuration.

        Raises:
            ConfigError: naming the rule and the nearest keys.
        """
        configs = [run.config for run in runs]
        for rule in self.rules:
            for template in rule.overrides:
                for name in (name for expression in template.expressions for name in expression.names):
                    head, _, rest = name.partition(".")
                    if head == "parent" and rest in _OWN:
                        continue
                    if head == "parent" and rest and not any(_has(config, rest) for config in configs):
                        known = sorted({key for config in configs for key in config})
                        if "." not in rest and not _may_be_metric(rest):
                            raise ConfigError(
                                f"Rule {rule.name!r}: no run has {rest!r}, which {template.text!r} reads."
                                f"{nearest(rest, known)} Keys at the top: {', '.join(known) or 'none'}."
                            )

    def reads(self, runs: Sequence[RunView]) -> dict[str, str]:
        """Return the metrics that rules read, and which rule does; what a configuration has is none."""
        found: dict[str, str] = {}
        for rule in self.rules:
            expressions = [expression for template in rule.overrides for expression in template.expressions]
            for expression in [*expressions, *([rule.when] if rule.when is not None else [])]:
                for name in map(_bare, expression.names):
                    if name not in (*_OWN, "live") and not any(_has(run.config, name) for run in runs):
                        found.setdefault(name, f"Rule {rule.name!r}")
            by = rule.select.by if isinstance(rule.select, Ranked) else None
            if by and by != "eval_loss":  # for which the training loss stands in
                found.setdefault(by, f"Rule {rule.name!r}")
        return found

    def decide(self, scene: Scene) -> list[Decision]:
        """Return what the rules ask for now; a run that one rule has taken is left out by those after it."""
        decisions: list[Decision] = []
        taken: set[int] = set()
        for rule in self.rules:
            for chunk in chunks_of(rule, scene):
                for decision, run in self._apply(rule, scene, chunk):
                    if run not in taken or rule.do == "clone":
                        decisions.append(decision)
                        if rule.do != "clone":
                            taken.add(run)
        return decisions

    def _apply(self, rule: Rule, scene: Scene, chunk: int | None) -> list[tuple[Decision, int]]:
        past = [op for op in scene.ops if op.by.startswith("policy/") and op.by.endswith(f"/{rule.name}")]
        if chunk is None:
            there = [run for run in scene.runs if run.chunk and can_act(rule, run, past)]
        else:
            there = scene.ranked_at(chunk)
        holding = [run for run in there if self._holds(rule, scene, run, chunk or run.chunk)]
        try:
            chosen = choose(rule, holding, chunk, scene.objective)
        except OpError as error:  # nobody has logged what it ranks by, or nobody says which end of that is the good one
            assert isinstance(rule.select, Ranked)
            self._miss(rule, str(rule.select.to_document()), str(error), about="select")
            chosen = []
        decisions = []
        left = math.inf if rule.times is None else rule.times - len(past)
        for run in chosen:
            if chunk is not None and run.chunk != chunk:
                continue  # it has gone on
            if not can_act(rule, run, past):
                continue
            decision = self._decision(rule, scene, run) if left > 0 else None
            if decision is not None:
                decisions.append((decision, run.number))
                left -= 1
        return decisions

    def _decision(self, rule: Rule, scene: Scene, run: RunView) -> Decision | None:
        overrides = []
        for template in rule.overrides:
            try:
                overrides.append(template.fill(lambda name: _parent_name(name, scene, run)))
            except (Unknown, ArithmeticError, TypeError, ValueError) as error:
                self._miss(rule, template.text, f"run {run.number}: {type(error).__name__} {error}")
                return None
        document: dict[str, Any] = {"op": rule.do, "run": run.number}
        if rule.do == "clone":
            document |= {"overrides": overrides, "warm_start": rule.warm_start}
        try:
            op = parse(document)
        except OpError as error:
            self._miss(rule, str(overrides), str(error))
            return None
        reasons = [f"rule {rule.name}"]
        if rule.when is not None:
            reasons.append(rule.when.text)
        if isinstance(rule.select, Ranked):
            reasons.append(" ".join(f"{key} {value}" for key, value in rule.select.to_document().items()))
        return Decision(op, f"{', '.join(reasons)}, after chunk {run.chunk}", rule.name)

    def _holds(self, rule: Rule, scene: Scene, run: RunView, chunk: int) -> bool:
        if rule.when is None:
            return True
        try:
            return bool(rule.when.evaluate(lambda name: _name(name, scene, run, chunk)))
        except Unknown as error:
            self._miss_metric(rule, rule.when.text, str(error), run)
            return False
        except (ArithmeticError, TypeError, ValueError) as error:
            self._miss(rule, rule.when.text, f"{type(error).__name__} {error}")
            return False

    def _miss_metric(self, rule: Rule, text: str, name: str, run: RunView) -> None:
        """Say that a run has not logged what a rule reads, once it has logged anything of that kind."""
        metric = _bare(name)
        kind = [known for known in sorted(run.metrics) if known.startswith("eval_") == metric.startswith("eval_")]
        if kind and metric not in run.metrics and not _has(run.config, metric):
            near = nearest(metric, [*run.metrics, *run.config])
            reason = f"run {run.number} has no {metric!r}.{near} It has logged: {', '.join(kind)}."
            self._miss(rule, text, reason, about=metric)

    def _miss(self, rule: Rule, text: str, reason: str, about: str | None = None) -> None:
        if (rule.name, about or reason) not in self._missed:
            self._missed.add((rule.name, about or reason))
            log.warning("Rule %r did not act, %r: %s", rule.name, text, reason)


# --- which chunks, which runs, which values ---------------------------------------------------------------------------


_OWN = ("chunk", "chunks", "age", "number")


def _name(name: str, scene: Scene, run: RunView, chunk: int) -> Any:
    head, _, rest = name.partition(".")
    if head == "best" and rest:
        ranked = [other for other in scene.ranked_at(chunk) if other.state not in ("failed", "deleted")]
        if not ranked:
            raise Unknown(name)
        return _attribute(ranked[0], rest, chunk)
    if head == "previous" and rest:
        if chunk < 2:
            raise Unknown(name)
        return look_up(run.history[chunk - 2], rest)
    if head == "origin" and rest:
        origin = None if run.parent is None else scene.run(run.parent)
        if origin is None:
            raise Unknown(name)
        return _attribute(origin, rest, origin.chunk)
    if name == "live":
        return sum(other.is_live for other in scene.runs)
    return _attribute(run, name, chunk)


def _bare(name: str) -> str:
    """Return a name without the word that says whose it is."""
    head, _, rest = name.partition(".")
    return rest if rest and head in ("best", "previous", "origin", "parent") else name


def _parent_name(name: str, scene: Scene, run: RunView) -> Any:
    head, _, rest = name.partition(".")
    is_parent = head == "parent" and rest
    return _attribute(run, rest, run.chunk) if is_parent else _name(name, scene, run, run.chunk)


def _attribute(run: RunView, name: str, chunk: int) -> Any:
    if name in _OWN:
        # Its age then, not now: else who leads at a chunk would change when those who led have gone on.
        age = run.age - (run.chunk - chunk)
        return {"chunk": chunk, "chunks": run.chunks, "age": age, "number": run.number}[name]
    metrics = run.history[chunk - 1] if chunk else {}
    return metrics[name] if name in metrics else look_up(run.config, name)


def _has(config: Mapping[str, Any], name: str) -> bool:
    try:
        look_up(config, name)
    except Unknown:
        return False
    return True


def _may_be_metric(name: str) -> bool:
    return name.startswith("eval_") or name in ("loss", "grad_norm", "learning_rate", "epoch") or "/" in name
