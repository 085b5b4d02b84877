"""A model card that says what was done: every figure in it is read from the experiment's files."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rfflow.confidential import redacted
from rfflow.config.paths import looks_local
from rfflow.results.opened import Opened
from rfflow.runs.finished import FinishedRun
from rfflow.runs.run import Run

_DATA = ("path", "name", "config", "split", "max_samples", "eval_path", "eval_split", "eval_size", "datasets")
_TIMES = ("runtime", "per_second", "step_time")


def card(
    opened: Opened, run: Run, finished: FinishedRun, *, merged: bool, name: str, base: str, notes: Sequence[str] = ()
) -> str:
    """Write the card.

    Args:
        opened: the experiment.
        run: the run.
        finished: what it has left.
        merged: whether the whole model is beside the card.
        name: how the model is to be called.
        base: what ``from_pretrained`` finds its base model by, or what to call that where there is nothing of the kind.
        notes: sentences that whoever uses it should know.
    """
    config = opened.config(run.number)
    trainer = str((config.get("trainer") or {}).get("_target_", "a trainer that an application built"))
    parts = [
        f"# {name}",
        _summary(opened, run, finished, trainer, shown_name(finished.model.name) if finished.model else base, merged),
        *([" ".join(notes)] if notes else []),
        "## Use",
        _use(finished, merged=merged, name=name, base=base),
        "## Data",
        _data(config.get("dataset")),
        "## Metrics",
        _metrics(opened, run),
        "## Configuration",
        _configuration(opened, run, config),
        "## Versions",
        _table(("library", "version"), opened.saved.versions.items()),
    ]
    head = _head(finished, trainer, merged=merged, base=base)
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n" + "\n\n".join(parts) + "\n"


def _head(finished: FinishedRun, trainer: str, *, merged: bool, base: str) -> dict[str, Any]:
    """Return what the hub reads; a base that is not on the hub is none that it knows."""
    is_adapter = finished.adapter is not None and not merged
    kind = trainer.rpartition(".")[2].removesuffix("Trainer").lower()
    head: dict[str, Any] = {"library_name": "peft" if is_adapter else "transformers"}
    if finished.model is not None and not looks_local(finished.model.name):
        head |= {"base_model": base, "base_model_relation": "adapter" if is_adapter else "finetune"}
    if finished.generates:
        head["pipeline_tag"] = "text-generation"
    return head | {"tags": ["rfflow", *([kind] if trainer.startswith("trl.") else [])]}


def _summary(opened: Opened, run: Run, finished: FinishedRun, trainer: str, base: str, merged: bool) -> str:
    experiment = opened.experiment
    objective = experiment.spec.objective.standing(each.metrics for each in experiment.runs)
    what = "All weights" if finished.adapter is None else f"An adapter ({finished.method})"
    of = f" of {base}" if base and finished.adapter is None else f" on {base}" if base else ""
    of += ", merged into its weights" if merged and finished.adapter is not None else ""
    epochs = run.metrics.get("epoch")
    steps = f"{run.step} optimizer steps" + (f" (epoch {epochs:.3g})" if epochs else "")
    ranked = [each.number for each in experiment.ranked()]
    place = ""
    if run.number in ranked and len(ranked) > 1:
        place = (
            f", number {ranked.index(run.number) + 1} of {len(ranked)} by {objective.metric} ({objective.direction})"
        )
    text = (
        f"{what}{of}, trained with `{trainer}` for {steps}: run {run.number} of the experiment "
        f"*{experiment.spec.name}*{place}."
    )
    if run.parent is not None:
        record = opened.saved.run(run.number)
        warm = " and began with its weights" if record is not None and record.is_warm else ""
        text += f" It is a clone of run {run.parent}{warm}."
    return (
        f"{text} Written by rfflow {opened.saved.versions.get('rfflow', '')}".rstrip() + " from the experiment's files."
    )


def _use(finished: FinishedRun, *, merged: bool, name: str, base: str) -> str:
    auto = "AutoModelForCausalLM" if finished.generates else "AutoModelForSequenceClassification"
    if finished.adapter is None or merged:
        lines = [f"from transformers import {auto}, AutoTokenizer", "", f'model = {auto}.from_pretrained("{name}")']
    else:
        lines = [
            "from peft import PeftModel",
            f"from transformers import {auto}, AutoTokenizer",
            "",
            f'base = {auto}.from_pretrained("{base}")',
            f'model = PeftModel.from_pretrained(base, "{name}")',
        ]
    return "\n".join(["```python", *lines, f'tokenizer = AutoTokenizer.from_pretrained("{name}")', "```"])


def _data(dataset: Any) -> str:
    if not isinstance(dataset, Mapping):
        return "An application built the trainer, so nothing is known of its rows."
    lines = [f"- {key}: `{_plain(dataset[key])}`" for key in _DATA if dataset.get(key) not in (None, 0, [], {})]
    if function := dataset.get("formatting_func"):
        lines.append(f"- formatted by: `{_plain(function)}`")
    if columns := dataset.get("columns"):
        lines.append(f"- columns renamed: `{_plain(columns)}`")
    return "\n".join(lines) or "Nothing is known of its rows."


def _metrics(opened: Opened, run: Run) -> str:
    """Return the metrics by chunk, those that evaluations made and the loss; times say nothing of a model."""
    names = [name for name in run.metrics if name == "loss" or name.startswith("eval_")]
    names = [name for name in names if not name.endswith(_TIMES)]
    if not names:
        return "Nothing was measured."
    rows = [
        (f"{place}/{len(run.chunks)}", chunk.step, *(_number(chunk.metrics.get(name)) for name in names))
        for place, chunk in enumerate(run.chunks, 1)
        if chunk.metrics
    ]
    rows = rows or [("end", run.step, *(_number(run.metrics.get(name)) for name in names))]
    return _table(("chunk", "step", *names), rows) + "\n\n`loss` is the mean over the chunk's steps."


def _configuration(opened: Opened, run: Run, config: Mapping[str, Any]) -> str:
    record, command = opened.saved.run(run.number), opened.saved.command
    parts = []
    if command is not None and opened.saved.program:
        words = ["python", *opened.saved.program, *(f"--config-dir={folder}" for folder in command.config_dirs)]
        words += ["--config-name", command.config_name] if command.config_name not in (None, "config") else []
        words += [*(["--multirun"] if command.is_sweep else []), *command.task, *command.hydra]
        parts.append("The command of the experiment:\n\n```\n" + shlex.join(map(redacted, words)) + "\n```")
    if record is not None and record.job:
        parts.append("The overrides of this run:\n\n```\n" + redacted("\n".join(record.job)) + "\n```")
    if config:
        shown = yaml.safe_dump(json.loads(json.dumps(config)), sort_keys=True, allow_unicode=True)
        parts.append("Its whole configuration:\n\n```yaml\n" + redacted(shown) + "```")
    return "\n\n".join(parts) or "An application built the trainer, so nothing is known of its configuration."


def _table(heads: Sequence[str], rows: Any) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if math.isfinite(value) else str(value)


def _plain(value: Any) -> str:
    return redacted(value if isinstance(value, str) else json.dumps(value))


def shown_name(model: str) -> str:
    """Return what to call a base model away from this machine: its hub name, or what its path ends with."""
    return Path(model).name if looks_local(model) else model
