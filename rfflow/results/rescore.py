"""``rfflow rescore DIR metrics.NAME=...``: the answers that evaluations have left, scored anew, asking nobody."""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rfflow.config.dataset import read_dataset
from rfflow.config.evaluation import READS_QUESTIONS, read_evaluation
from rfflow.config.files import CONF
from rfflow.errors import ConfigError, RfflowError, nearest
from rfflow.evals.estimates import running_metrics, shares
from rfflow.evals.items import Item, read_items
from rfflow.evals.judging import is_judge
from rfflow.evals.questions import Question, shards
from rfflow.evals.scoring import Metrics, range_of
from rfflow.files import replace_text, shown, typed_command
from rfflow.results.opened import Opened, open_experiment
from rfflow.runs.run import Run


def rescore(argv: Sequence[str]) -> int:
    """Score anew, print what comes of it and write ``rescored.csv``; return the exit status."""
    parser = argparse.ArgumentParser(
        prog=f"{typed_command()} rescore", description="Score the answers that evaluations have left, asking nobody."
    )
    parser.add_argument("dir", help="an experiment's directory")
    parser.add_argument("metrics", nargs="+", help="metrics.NAME=my_code.my_function, or metrics=GROUP")
    args = parser.parse_args(argv)
    try:
        opened = open_experiment(args.dir)
        chosen, given = _read_metrics(args.metrics)
        rows = [_rescored(opened, run, chosen, given) for run in _evaluations(opened)]
    except RfflowError as error:
        print(f"rfflow rescore: {error}", file=sys.stderr)
        return 1
    heads = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, heads, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path = opened.root / "rescored.csv"
    replace_text(path, text.getvalue())
    for row in rows:
        print("  ".join([f"run {row['run']}", *_shown(row)]))
    print(shown(path))
    return 0


def _read_metrics(words: Sequence[str]) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """Return the metrics of the group that is chosen in the place of a run's own, if one is, and the others."""
    groups = [word.partition("=")[2] for word in words if word.startswith("metrics=")]
    words = [word for word in words if not word.startswith("metrics=")]
    for word in words:
        if not word.startswith("metrics.") or "=" not in word:
            raise ConfigError(f"{word!r} is no metric. Say metrics.NAME=my_code.my_function, or metrics=GROUP.")
    chosen = _group(groups[-1]) if groups else None
    try:
        read = OmegaConf.to_container(OmegaConf.from_dotlist(["metrics={}", *words]))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{' '.join(words)} cannot be read: {error}") from error
    assert isinstance(read, dict)
    given = dict(read["metrics"])
    for name, node in {**(chosen or {}), **given}.items():
        node = {"_target_": node} if isinstance(node, str) else node
        if isinstance(node, Mapping) and node.get("_target_") and is_judge(node, f"metrics.{name}"):
            raise ConfigError(f"metrics.{name} is a judge, who asks a model, and here nobody is asked.")
    return chosen, given


def _group(name: str) -> dict[str, Any]:
    there = sorted(path.stem for path in (CONF / "metrics").glob("*.yaml"))
    if name not in there:
        raise ConfigError(
            f"metrics is {name!r}, and no such group.{nearest(name, there)} There are: {', '.join(there)}."
        )
    with initialize_config_dir(str(CONF), version_base="1.3", job_name="rescore"):
        found = OmegaConf.to_container(compose(overrides=[f"+metrics={name}"]).metrics)
    assert isinstance(found, dict)
    return {str(key): node for key, node in found.items()}


def _evaluations(opened: Opened) -> list[Run]:
    found = [run for run in opened.experiment.runs if run.is_evaluation]
    if not found:
        raise ConfigError(f"{shown(opened.root)} has no evaluation: no run of it has an items.jsonl.")
    return found


def _rescored(opened: Opened, run: Run, chosen: Mapping[str, Any] | None, given: Mapping[str, Any]) -> dict[str, Any]:
    config = opened.config(run.number)
    config["metrics"] = {**(config.get("metrics", {}) if chosen is None else chosen), **given}
    spec = read_evaluation({**config, "objective": {"metric": opened.experiment.spec.objective.metric}})
    questions = _questions(config)
    metrics, items = Metrics(spec.metrics, questions), read_items(run.paths.items)
    scored = {place: _scored(item, questions, metrics, spec.k) for place, item in items.items()}
    end = len(questions) if len(items) == len(questions) else run.step
    looks = shards(len(questions), int(config.get("chunks", 1)))
    parents = {each.number: each.parent for each in _evaluations(opened)}
    alpha = (1 - spec.level) * shares(parents, spec.candidates)[run.number]
    ranges = {name: range_of(node) for name, node in spec.metrics.items()}
    found = running_metrics(scored, end, len(questions), looks, alpha, ranges, spec.interval)
    return {"run": run.number, "questions": end, **found}


def _scored(item: Item, questions: Sequence[Question], metrics: Metrics, k: int) -> Item:
    question = questions[item.position] if item.position < len(questions) else None
    if question is None or question.id != item.id:
        raise ConfigError(f"The data set is not the one that was asked: there is no question {item.id!r} in its place.")
    if item.answer is None:
        return item
    scores, trouble = metrics(question, item.answer, item.found, k, item.usage, item.latency, item.cost)
    return replace(item, scores={**item.scores, **scores}, error=trouble)


def _questions(config: Mapping[str, Any]) -> list[Question]:
    """Read the questions in the order in which they were asked."""
    from rfflow.worker.data.rows import load_data
    from rfflow.worker.evaluation.pieces import in_order

    seed = int(config.get("seed") or 0)
    data = load_data(read_dataset(dict(config["dataset"])), seed, READS_QUESTIONS)
    return in_order(data, seed)[0]


def _shown(row: Mapping[str, Any]) -> list[str]:
    names = [name for name in row if name.startswith("eval_") and not name.endswith(("_low", "_high"))]
    said = []
    for name in names:
        low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
        limits = f" [{low:.3f}, {high:.3f}]" if low is not None and high is not None and low != high else ""
        said.append(f"{name} {row[name]:.4g}{limits}")
    return said
