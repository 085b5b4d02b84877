"""``rfflow replay outputs/sft/... policy=halving``: what a policy would have done in an experiment that is over.

It reads what the experiment left (``runs.csv``, ``metrics.jsonl``, ``timeline.json``), lets the policy decide chunk by
chunk over the recorded curves, and says what it would have chosen, saved and lost. Several policies may be given as a
sweep: ``policy=halving,hyperband,median policy.eta=2,3``.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from rfflow.config import files
from rfflow.config.spec import Node, Objective
from rfflow.config.typos import explained
from rfflow.errors import ConfigError, RfflowError, nearest
from rfflow.files import shown, typed_command
from rfflow.policies.record import Record, read_record
from rfflow.policies.runner import make_policy
from rfflow.policies.scene import Decision, Policy, RunView
from rfflow.policies.simulation import Curve, Outcome, simulate
from rfflow.runs.ranking import Standing, best_first

_USAGE = """usage: {rfflow} replay EXPERIMENT policy=NAME [policy.KEY=VALUE ...] [objective.metric=NAME ...]

Say what a policy would have chosen, saved and lost in an experiment that is over.
EXPERIMENT is its directory, such as outputs/sft/2026-01-31_12-00-00; values may be swept with commas."""


def main(argv: Sequence[str], conf: Path) -> int:
    """Run the command; return the exit status."""
    roots = [word for word in argv if "=" not in word and not word.startswith("-")]
    overrides = [word for word in argv if "=" in word]
    if len(roots) != 1 or len(roots) + len(overrides) != len(argv) or not overrides:
        print(_USAGE.format(rfflow=typed_command()), file=sys.stdout if {"-h", "--help"} & set(argv) else sys.stderr)
        return 0 if {"-h", "--help"} & set(argv) else 2
    try:
        record = read_record(Path(roots[0]))
        for words in _each(overrides):
            print(_replayed(Path(roots[0]), record, words, conf))
    except (RfflowError, HydraException) as error:
        print(f"{error}", file=sys.stderr)
        return 1
    return 0


def replay(record: Record, policy: Node, objective: Objective) -> Outcome:
    """Let a policy decide over a record; clones that it asks for are noted and not made."""
    made, name, _ = make_policy(policy)
    metric = objective.metric.removeprefix("eval_")
    curves = [
        curve
        if (known := record.answered.get(curve.number)) is None
        else replace(curve, candidate=known.candidate(curve.number, metric))
        for curve in record.curves
    ]
    _check(made, record, objective, curves)
    return simulate(curves, made, objective, name, clones=False)


def _check(policy: Policy, record: Record, objective: Objective, curves: Sequence[Curve]) -> None:
    """Check, as before training, that what a policy ranks by and reads has been logged.

    Raises:
        ConfigError: with the nearest names.
    """
    logged = sorted({name for curve in record.curves for metrics in curve.metrics for name in metrics})
    if objective.value(dict.fromkeys(logged, 0.0)) is None:
        raise ConfigError(f"objective.metric is {_unknown(objective.metric, logged)}")
    if getattr(policy, "reads_scores", False) and all(curve.candidate is None for curve in curves):
        raise ConfigError(
            "The policy reads the scores of single answers, and no run is an evaluation that was scored by "
            f"{objective.metric}."
        )
    views = [RunView(c.number, "queued", len(c.metrics), (), c.config, c.parent, c.age) for c in record.curves]
    if any(view.config for view in views) and (check := getattr(policy, "check", None)) is not None:
        check(views)
    for metric, reader in (reads(views) if (reads := getattr(policy, "reads", None)) is not None else {}).items():
        if metric not in logged:
            raise ConfigError(f"{reader} reads {_unknown(metric, logged)}")


def _unknown(metric: str, logged: Sequence[str]) -> str:
    return f"{metric!r}, which no run has logged.{nearest(metric, logged)} Logged: {', '.join(logged)}."


def _each(overrides: Sequence[str]) -> list[tuple[str, ...]]:
    choices = []
    for text, override in zip(overrides, OverridesParser.create().parse_overrides(list(overrides)), strict=True):
        key = override.get_key_element()
        is_sweep = override.is_sweep_override()
        choices.append([f"{key}={value}" for value in override.sweep_string_iterator()] if is_sweep else [text])
    return list(itertools.product(*choices))


def _replayed(root: Path, record: Record, overrides: Sequence[str], conf: Path) -> str:
    files.install()
    with initialize_config_dir(str(conf), version_base="1.3", job_name="replay"):
        overrides = files.escaped_words(overrides)
        try:
            config = compose("config", overrides)
        except HydraException as error:
            raise explained(GlobalHydra.instance().config_loader(), "config", overrides) or error from None
    policy = OmegaConf.to_container(config.policy, resolve=True)
    if not policy:
        raise ConfigError("policy=none would have changed nothing. Choose a policy: halving, hyperband, median, rules.")
    chosen = cast(dict[str, Any], OmegaConf.to_container(config.objective, resolve=True))
    named = {word.partition("=")[0] for word in overrides}
    for key, value in record.objective.items():
        if f"objective.{key}" not in named:
            chosen[key] = value
    objective = Objective(**chosen)
    outcome = replay(record, cast(Node, policy), objective)
    return report(root, record, outcome, objective, " ".join(overrides))


# --- saying -----------------------------------------------------------------------------------------------------------


def report(root: Path, record: Record, outcome: Outcome, objective: Objective, words: str) -> str:
    """Say what a policy would have chosen, saved and lost."""
    total = sum(len(curve.metrics) for curve in record.curves)
    lines = [f"{words} over {shown(root)}: {len(record.curves)} runs, {total} chunks recorded"]
    lines += [f"  {_line(decision)}" for decision in outcome.decisions]
    lines += [f"  refused: {_line(decision)} {reason}" for decision, reason in outcome.refused]
    lines.append(f"Saved: {_share(total - outcome.spent, total)} of the chunks ({total - outcome.spent} of {total})")
    if record.seconds:
        seconds = sum(
            record.seconds.get((curve.number, c), 0) for curve in record.curves for c in range(len(curve.metrics))
        )
        spent = sum(record.seconds.get(key, 0) for key in outcome.order)
        lines[-1] += f", {_share(seconds - spent, seconds)} of the time on the device ({seconds - spent:.0f} s)"
    if record.answered:
        lengths = {
            number: [b - a for a, b in itertools.pairwise((0, *known.looks))]
            for number, known in record.answered.items()
        }
        curves = {curve.number: curve for curve in record.curves if curve.number in lengths}
        asked = sum(sum(lengths[number][: len(curve.metrics)]) for number, curve in curves.items())
        taken = sum(lengths[number][chunk] for number, chunk in outcome.order if number in lengths)
        lines[-1] += f", {_share(asked - taken, asked)} of the answers ({asked - taken} of {asked})"
    lines[-1] += "."
    lines.append(_loss(record, outcome, objective))
    short = [c.number for c in record.curves if len(c.metrics) < record.planned.get(c.number, 0)]
    if short:
        lines.append(f"Known only as far as they were trained, which is not to the end: {_numbers(short)}.")
    if record.live:
        lines.append(f"Not over: {_numbers(record.live)}. What is said holds for the chunks that are there by now.")
    if record.silent:
        lines.append(f"Left out, because they have not ended a chunk: {_numbers(record.silent)}.")
    made = {run.number for run in outcome.scene.runs}
    clones = [c.number for c in record.curves if c.parent is not None and c.number in made]
    if clones:
        lines.append(f"Clones that people made, as they were made: {_numbers(clones)}.")
    unborn = [c.number for c in record.curves if c.number not in made]
    if unborn:
        lines.append(f"Clones of runs that would not have come that far, so never made: {_numbers(unborn)}.")
    if record.left_out:
        words = "a clone" if len(record.left_out) == 1 else f"{len(record.left_out)} clones"
        lines.append(f"Left out: {words} that a policy made, or of those: {_numbers(record.left_out)}.")
    return "\n".join(lines)


def _loss(record: Record, outcome: Outcome, objective: Objective) -> str:
    ended = [curve for curve in record.curves if curve.fails_at is None] or record.curves
    by_number = {curve.number: curve for curve in ended}
    best = by_number[best_first([_standing(curve, record) for curve in ended], objective)[0]]
    objective = objective.standing(curve.metrics[-1] for curve in ended)
    is_whole = all(len(c.metrics) >= record.planned.get(c.number, 0) for c in ended)
    among = "of all runs trained to the end" if is_whole else "of all runs, each as far as it was trained"
    value = objective.value(best.metrics[-1])
    chosen = outcome.chosen
    if chosen is None or value is None:
        return f"Chosen: nobody, because no run logged {objective.metric}."
    own = objective.value(chosen.metrics)
    text = f"Chosen: run {chosen.number} with {objective.metric} {_number(own)} after {chosen.chunk} chunks. "
    if own is None or math.isnan(own):
        return text + f"The best {among} is run {best.number} with {_number(value)}."
    lost = own - value if objective.direction == "minimize" else value - own
    if chosen.number == best.number and lost == 0:
        return text + f"It is the best {among}: nothing lost."
    share = f" ({100 * lost / abs(value):.2g} %)" if value else ""
    return text + f"Lost: {_number(lost)}{share} against run {best.number} with {_number(value)}, the best of all."


def _standing(curve: Curve, record: Record) -> Standing:
    known = record.answered.get(curve.number)
    if known is None:
        return Standing(curve.number, curve.metrics[-1])
    past = tuple(zip(known.looks, curve.metrics, strict=False))
    return Standing(curve.number, curve.metrics[-1], past, len(past) < len(known.looks))


def _line(decision: Decision) -> str:
    target = decision.op.target.to_document()
    overrides = " ".join(getattr(decision.op, "overrides", ()))
    return f"{decision.op.verb} run {target}{' with ' if overrides else ''}{overrides}: {decision.why}"


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "nothing"


def _number(value: float | None) -> str:
    return "nothing" if value is None else f"{value:.4g}"


def _numbers(numbers: Sequence[int]) -> str:
    return ", ".join(str(number) for number in numbers)
