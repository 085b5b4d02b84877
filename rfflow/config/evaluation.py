"""Read and check the sections of an evaluation: what answers the questions, and how the answers are scored."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hydra.core.hydra_config import HydraConfig

from rfflow.config.dataset import read_dataset
from rfflow.config.fields import settings_of, whole_number
from rfflow.config.spec import DatasetSpec, EvaluationSpec, Node, PromptSpec, TrainerSpec
from rfflow.errors import ConfigError

READS_QUESTIONS = TrainerSpec("rfflow.evals.questions.Question", "rfflow.evals.questions.Question")
"""What stands where a trainer's class would, for whoever asks which columns are read."""
INTERVALS = ("auto", "exact", "anytime")


def is_evaluation(config: Node) -> bool:
    """Whether a run's configuration asks for answers, and not for training."""
    return bool(config.get("generator") or config.get("pipeline"))


def read_evaluation(config: Node) -> EvaluationSpec:
    """Read and check the sections.

    Raises:
        ConfigError: naming the setting that cannot be.
    """
    trainer = config.get("trainer") or {}
    if "_target_" in trainer:  # arguments alone are what a clone's parent was trained with
        raise ConfigError(
            "The configuration has a generator (or a pipeline) and a trainer: a run is evaluated or trained. Say "
            "trainer=none peft=none to evaluate."
        )
    if not config.get("peft"):  # else it may be a clone, by its parent's overrides, that answers with what was trained
        _check_given()
    generator, pipeline = (_callable(config.get(name), name) for name in ("generator", "pipeline"))
    if generator and pipeline:
        raise ConfigError("generator and pipeline are both set. A pipeline answers by itself: say generator=none.")
    given = generator or pipeline or {}
    concurrency = whole_number(given.pop("concurrency", 8), f"{'generator' if generator else 'pipeline'}.concurrency")
    retriever = dict(config.get("retriever") or {})
    if pipeline and (retriever or config.get("prompt")):
        name = "retriever" if retriever else "prompt"
        raise ConfigError(f"pipeline and {name} are both set, and a pipeline has its own. Say {name}=none.")
    k, chunker = whole_number(retriever.pop("k", 3), "retriever.k"), retriever.pop("chunker", None)
    reranker = dict(config.get("reranker") or {})
    reranked = _read_candidates(reranker, k, bool(retriever))
    corpus = _read_corpus(config.get("corpus"))
    found = _callable(retriever, "retriever")
    metrics = _read_metrics(config.get("metrics"))
    _check_objective(config.get("objective"), metrics)
    return EvaluationSpec(
        generator=generator,
        pipeline=pipeline,
        prompt=None if pipeline else _read_prompt(config.get("prompt")),
        corpus=corpus,
        retriever=found,
        chunker=_callable(chunker, "retriever.chunker"),
        k=k,
        reranker=_callable(reranker, "reranker"),
        reranked=reranked,
        concurrency=concurrency,
        metrics=metrics,
        **_read_stats(config.get("stats"), config.get("search")),
    )


def _check_given() -> None:
    """Refuse what was typed for a trainer, and nothing would read."""
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else ()
    for override in map(str, overrides):
        key = override.lstrip("+~").partition("=")[0]
        if key in ("lr", "evaluate") or key.startswith(("trainer.", "peft.", "evaluation.")):
            raise ConfigError(f"{override}: this run is an evaluation, in which nothing is trained. Leave {key} out.")


def _callable(section: Any, name: str) -> dict[str, Any] | None:
    """Read something by ``_target_``; a dotted path alone will do."""
    if not section:
        return None
    node = {"_target_": section} if isinstance(section, str) else section
    if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
        raise ConfigError(
            f"{name} is {section!r}, which has no _target_. Choose a config of the group ({name}=...), or give "
            f"{name}._target_=my_code.my_function."
        )
    return {key: value for key, value in node.items() if value is not None}


def _read_candidates(reranker: dict[str, Any], k: int, has_retriever: bool) -> int:
    """Take out how many passages a reranker is given."""
    candidates = whole_number(reranker.pop("candidates", max(20, k)), "reranker.candidates")
    if reranker and not has_retriever:
        raise ConfigError("reranker is set, and there is no retriever whose passages it could put in order.")
    if reranker and candidates < k:
        raise ConfigError(f"reranker.candidates is {candidates}, and retriever.k of them are kept, which is {k}.")
    return candidates


def _read_corpus(section: Any) -> DatasetSpec | None:
    if not section:
        return None
    if not isinstance(section, Mapping):
        raise ConfigError(f"corpus is {section!r}. Allowed: what dataset takes, such as {{path: documents.jsonl}}.")
    section = dict(section)
    first = section.pop("max_samples", None)
    try:
        spec = read_dataset(section, "corpus")
    except ConfigError as error:
        raise ConfigError(str(error).replace("dataset.", "corpus.")) from error
    if first is None:
        return spec
    return replace(spec, max_samples=whole_number(first, "corpus.max_samples"))


def _read_prompt(section: Any) -> PromptSpec:
    settings = settings_of(section, "prompt", ("system", "user", "fewshot", "answer"))
    settings = {key: value for key, value in settings.items() if value is not None}
    for key in ("system", "user", "answer"):
        if key in settings and not isinstance(settings[key], str):
            raise ConfigError(f"prompt.{key} is {settings[key]!r}. Allowed: text, with {{{{ question }}}} in it.")
    whole_number(settings.get("fewshot", 0), "prompt.fewshot", least=0)
    if not settings.get("user", "").strip():
        raise ConfigError('prompt.user is empty. Say what the model is asked, such as prompt.user="{{ question }}".')
    return PromptSpec(**settings)


def _read_metrics(section: Any) -> dict[str, dict[str, Any]]:
    if section and not isinstance(section, Mapping):
        raise ConfigError(f"metrics is {section!r}. Allowed: {{f1: rfflow.evals.metrics.f1}}.")
    found = {}
    for name, given in (section or {}).items():
        if (node := _callable(given, f"metrics.{name}")) is None:
            continue
        if not re.fullmatch(r"\w+", str(name)) or name in ("missing", "latency", "tokens", "cost"):
            raise ConfigError(
                f"metrics has one called {name!r}. Allowed: letters, digits and _, but not missing, latency, tokens, "
                "cost, which are there in any case."
            )
        _check_range(node.get("range", [0, 1]), f"metrics.{name}.range")
        found[str(name)] = node
    if not found:
        raise ConfigError("metrics is empty: nothing would be scored. Say metrics.f1=rfflow.evals.metrics.f1.")
    return found


def _check_range(value: Any, where: str) -> None:
    ends = list(value) if isinstance(value, list | tuple) else []
    numbers = [end for end in ends if isinstance(end, int | float) and not isinstance(end, bool)]
    if len(ends) != 2 or len(numbers) + ends.count(None) != 2 or (len(numbers) == 2 and not numbers[0] < numbers[1]):
        raise ConfigError(f"{where} is {value!r}. Allowed: the least and greatest score, as [0, 1]; null is no bound.")


def _check_objective(section: Any, metrics: Mapping[str, Any]) -> None:
    metric = section.get("metric", "eval_loss") if isinstance(section, Mapping) else "eval_loss"
    if metric == "eval_loss" and "loss" not in metrics:
        names = [f"eval_{name}" for name in metrics]
        raise ConfigError(
            f"objective.metric is 'eval_loss', and an evaluation has none. There are: {', '.join(names)}. Say "
            f"objective.metric={names[0]} objective.direction=maximize."
        )


def _read_stats(section: Any, search: Any) -> dict[str, Any]:
    settings = settings_of(section, "stats", ("level", "interval", "candidates", "baseline"))
    level = settings.get("level", 0.95)
    if isinstance(level, bool) or not isinstance(level, int | float) or not 0.5 <= level < 1:
        raise ConfigError(f"stats.level is {level!r}. Allowed: from 0.5 to below 1.")
    if settings.get("interval", "auto") not in INTERVALS:
        raise ConfigError(f"stats.interval is {settings['interval']!r}. Allowed: {', '.join(INTERVALS)}.")
    if settings.get("candidates") is not None:
        whole_number(settings["candidates"], "stats.candidates")
    elif isinstance(search, Mapping):
        settings["candidates"] = search.get("budget") or search.get("n_trials")
    if settings.get("baseline") is not None:
        whole_number(settings["baseline"], "stats.baseline", least=0)
    return settings
