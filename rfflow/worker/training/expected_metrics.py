"""Which metrics a trainer will log, as far as that can be known before it trains."""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import operator
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from transformers import Trainer, TrainingArguments

from rfflow.errors import ConfigError, nearest
from rfflow.runs.events import ExpectedMetrics

_AT_THE_END = {"train_loss", "total_flos"}
_ALWAYS = {"loss", "grad_norm", "learning_rate", "epoch", "train_loss", "total_flos"}
_BETWEEN_TRAININGS = {"model_preparation_time"}
"""What transformers logs of an evaluation that does not fall into a training."""
_AT_EVALUATIONS = {"loss", "runtime", "samples_per_second", "steps_per_second", "model_preparation_time"}
_LIBRARIES = ("transformers", "trl", "peft", "accelerate", "rfflow")


def foresee(trainer: Trainer, *, evaluates: bool, scores: Collection[str] | None = ()) -> ExpectedMetrics:
    """Say what a trainer will log.

    Args:
        trainer: one that has not trained.
        evaluates: whether rfflow evaluates it at boundaries, where it has something to evaluate on.
        scores: what evaluation by generation will log; ``None`` where that is not known.
    """
    own = _logged_by(type(trainer))
    names, is_known = _fill_in(own, trainer)
    evaluates = trainer.eval_dataset is not None and (evaluates or str(trainer.args.eval_strategy.value) != "no")
    is_complete = is_known and type(trainer).__module__.partition(".")[0] in ("trl", "transformers")
    is_complete &= all(_is_known(callback) for callback in trainer.callback_handler.callbacks)
    found = _ALWAYS | names
    if callable(getattr(trainer, "_generate", None)):
        found |= {"generation_share"}
        is_complete &= not any(map(_logs_by_itself, getattr(trainer, "reward_funcs", ())))
    not_offered = _ruled_out(trainer) | _AT_THE_END
    if evaluates:
        sets = evaluation_sets(trainer)
        prefixes = [f"eval_{each}_" for each in sets] or ["eval_"]
        found |= {f"{prefix}{name}" for prefix in prefixes for name in names | _AT_EVALUATIONS} | {"eval_loss"}
        not_offered |= {f"{prefix}{name}" for prefix in prefixes for name in not_offered | _BETWEEN_TRAININGS}
    found |= set(scores or ())
    has_metrics = evaluates and trainer.compute_metrics is not None
    return ExpectedMetrics(
        names=frozenset(found),
        evaluates=evaluates or scores is None or bool(scores),
        is_complete=is_complete,
        is_complete_for_evaluation=is_complete and not has_metrics and scores is not None,
        offered=frozenset(found - not_offered),
        evaluation_sets=evaluation_sets(trainer) if evaluates else (),
    )


def check_best_metric(args: TrainingArguments, expected: ExpectedMetrics) -> None:
    """Check that the metric which a trainer looks for in its own evaluations will be there.

    Raises:
        ConfigError: naming the nearest; transformers raises a KeyError at the first evaluation.
    """
    metric = args.metric_for_best_model
    if metric is None or args.eval_strategy.value == "no":
        return
    name = metric if metric.startswith("eval_") else f"eval_{metric}"
    if not expected.may_have(name):
        there = sorted(name for name in expected.offered if name.startswith("eval_"))
        raise ConfigError(
            f"trainer.args.metric_for_best_model is {metric!r}, and no evaluation will have {name}."
            f"{nearest(name, there)} There will be: {', '.join(there)}."
        )


def evaluation_sets(trainer: Trainer) -> tuple[str, ...]:
    """Return the names of a trainer's evaluation sets, where it has several."""
    return tuple(trainer.eval_dataset) if isinstance(trainer.eval_dataset, dict) else ()


def by_set(logged: Mapping[str, float], sets: Sequence[str]) -> dict[str, float]:
    """Return what was logged of one of several evaluation sets with the set's name in all names.

    transformers names its own metrics so, TRL does not: ``eval_entropy`` would be that of whichever set came last.
    """
    name = next((each for each in sets if f"eval_{each}_runtime" in logged), None)
    if name is None:
        return dict(logged)
    return {
        f"eval_{name}_{key[5:]}" if key.startswith("eval_") and not key.startswith(f"eval_{name}_") else key: value
        for key, value in logged.items()
    }


def _logged_by(trainer_class: type[Trainer]) -> set[tuple[bool, str]]:
    """Return the names in the source of TRL's trainers, and whether there is something to fill in."""
    modules = {cls.__module__ for cls in trainer_class.__mro__ if cls.__module__.startswith("trl.")}
    try:
        source = "".join(inspect.getsource(sys.modules[module]) for module in modules)
    except OSError:  # installed without its source
        return {(True, "{unknown}")}
    found = re.findall(r'_metrics\[(?:mode|"train"|"eval")\]\[(f?)"([^"]+)"\]', source)
    return {(bool(has_gaps), name) for has_gaps, name in found}


def _ruled_out(trainer: Trainer) -> set[str]:
    """Return the names that are logged only where an attribute of the trainer is another: ``aux_loss``, of experts."""
    modules = {cls.__module__ for cls in type(trainer).__mro__ if cls.__module__.startswith("trl.")}
    places: dict[str, list[bool]] = {}
    for module in modules:
        for name, conditions in _conditions_in(module):
            places.setdefault(name, []).append(any(_is(test, trainer) is (not holds) for test, holds in conditions))
    return {name for name, each in places.items() if all(each)}


@functools.cache
def _conditions_in(module: str) -> list[tuple[str, tuple[tuple[ast.expr, bool], ...]]]:
    """Return where a module logs metrics by name, and what has to hold of its trainer there."""
    found: list[tuple[str, tuple[tuple[ast.expr, bool], ...]]] = []

    def look(node: ast.AST, conditions: tuple[tuple[ast.expr, bool], ...]) -> None:
        if isinstance(node, ast.Subscript) and ast.unparse(node.value).startswith("self._metrics["):
            name = node.slice.value if isinstance(node.slice, ast.Constant) else None
            found.extend([(name, conditions)] if isinstance(name, str) else [])
        if isinstance(node, ast.If):
            for part, holds in ((node.body, True), (node.orelse, False)):
                for each in part:
                    look(each, (*conditions, (node.test, holds)))
            return
        for child in ast.iter_child_nodes(node):
            look(child, conditions)

    with contextlib.suppress(OSError):  # installed without its source
        look(ast.parse(inspect.getsource(sys.modules[module])), ())
    return found


_COMPARISONS: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Gt: operator.gt,
    ast.Is: operator.is_,
}


def _is(test: ast.expr, trainer: Trainer) -> bool | None:
    """Say whether a condition on an attribute of the trainer holds; ``None`` for any other condition."""
    match test:
        case ast.UnaryOp(op=ast.Not(), operand=inner):
            holds = _is(inner, trainer)
            return None if holds is None else not holds
        case ast.BoolOp(op=ast.And(), values=parts) if any(_is(part, trainer) is False for part in parts):
            return False
        case ast.Attribute(value=ast.Name(id="self"), attr=name) if hasattr(trainer, name):
            return bool(getattr(trainer, name))
        case ast.Compare(
            left=ast.Attribute(value=ast.Name(id="self"), attr=name), ops=[op], comparators=[ast.Constant(value=value)]
        ) if hasattr(trainer, name) and type(op) in _COMPARISONS:
            return bool(_COMPARISONS[type(op)](getattr(trainer, name), value))
    return None


def _fill_in(own: Collection[tuple[bool, str]], trainer: Trainer) -> tuple[set[str], bool]:
    """Return the names with the reward functions' in them, and whether that is all of them."""
    names, is_known = {name for has_gaps, name in own if not has_gaps}, True
    rewards = getattr(trainer, "reward_func_names", [])
    for name in (name for has_gaps, name in own if has_gaps):
        filled = {name.replace("{reward_func_name}", reward) for reward in rewards} or {name}
        is_known &= not any("{" in name for name in filled)
        names |= filled
    return names, is_known


def _is_known(callback: object) -> bool:
    return type(callback).__module__.partition(".")[0] in _LIBRARIES


def _logs_by_itself(reward: Any) -> bool:
    """Whether a reward function may log metrics of its own, which TRL lets it by ``log_metric``."""
    function: Callable[..., Any] = inspect.unwrap(getattr(reward, "_function", reward))
    while isinstance(function, functools.partial):
        function = function.func
    if not hasattr(function, "__code__"):
        function = getattr(type(function), "__call__", function)  # noqa: B004 - an object with something to keep
    code = getattr(function, "__code__", None)
    if code is None or getattr(function, "__module__", "").startswith("rfflow."):
        return False
    return "log_metric" in (*code.co_varnames, *code.co_names, *map(str, code.co_consts))
