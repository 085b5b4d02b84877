"""``rfflow compare``: the runs of several experiments in one table, and in one picture."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rfflow.config.spec import EXPERIMENT_KEYS, Objective
from rfflow.errors import ConfigError, RfflowError, nearest
from rfflow.files import shown, typed_command
from rfflow.results.opened import Opened, open_experiment
from rfflow.runs.run import Run, RunState
from rfflow.tracking.labels import override_key, tell_apart
from rfflow.tracking.layout import STYLES, duration


@dataclass(frozen=True)
class Entry:
    """A run among those of several experiments."""

    experiment: str
    """What tells its experiment from the others."""
    opened: Opened
    run: Run
    parts: tuple[str, ...]
    """What was said of it, as ``key=value``: of every key that was said of any run."""


def compare(argv: Sequence[str]) -> int:
    """Compare experiments; return the exit status."""
    parser = argparse.ArgumentParser(
        prog=f"{typed_command()} compare", description="The runs of several experiments, ranked together."
    )
    parser.add_argument("dirs", nargs="+", metavar="DIR", help="experiments' directories")
    parser.add_argument("--by", metavar="METRIC", help="what ranks the runs (default: the experiments' objective)")
    parser.add_argument("--direction", choices=("minimize", "maximize"), help="whether a low or a high one is good")
    parser.add_argument("--json", action="store_true", help="a JSON object with every run, best first")
    parser.add_argument("--picture", metavar="PATH", help="draw the metric's curves: .png, .svg or .pdf")
    args = parser.parse_args(argv)
    try:
        folders = dict.fromkeys(Path(folder).expanduser().resolve() for folder in args.dirs)
        opened = [open_experiment(_as_typed(folder)) for folder in folders]
        entries = list(entries_of(opened))
        objective = chosen_objective(opened, entries, args.by, args.direction)
        ranked = sorted(entries, key=lambda entry: _place(entry, objective))
        notes = [*what_differs(opened, objective)]
        if args.picture is not None:
            from rfflow.results.picture import draw

            draw(ranked, objective, Path(args.picture).expanduser())
    except RfflowError as error:
        print(f"rfflow compare: {error}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(_plain(ranked, objective, notes), indent=2))
        return 0
    _print(ranked, objective)
    for note in notes:
        print(f"\n{note}")
    if args.picture is not None:
        print(f"\n{shown(Path(args.picture).expanduser())}")
    return 0


def entries_of(opened: Sequence[Opened]) -> Iterator[Entry]:
    """Return all runs that were not deleted, each with what was said of it on the command lines."""
    names = _names(opened)
    runs = [
        (name, one, run)
        for name, one in zip(names, opened, strict=True)
        for run in one.experiment.runs
        if run.state is not RunState.DELETED
    ]
    typed = [_typed(one, run) for _, one, run in runs]
    keys = list(dict.fromkeys(key for each in typed for key in each))
    for (name, one, run), said in zip(runs, typed, strict=True):
        config = one.config(run.number)
        # By its value, not by its text: what one experiment was told may be what another does by itself.
        values = {key: _value(config, key, said) for key in keys}
        yield Entry(name, one, run, tuple(text for text in values.values() if text is not None))


def chosen_objective(opened: Sequence[Opened], entries: Sequence[Entry], by: str | None, direction: Any) -> Objective:
    """Return what ranks the runs.

    Raises:
        ConfigError: if the experiments have different objectives and none was chosen, or no run has the metric.
    """
    objectives = list(dict.fromkeys(one.experiment.spec.objective for one in opened))
    metrics = [entry.run.metrics for entry in entries]
    if by is None:
        if len(objectives) > 1:
            said = ", ".join(f"{each.metric} ({each.direction})" for each in objectives)
            raise ConfigError(
                f"The experiments have different objectives: {said}. Choose one: --by {objectives[0].metric}"
            )
        objective = objectives[0].standing(metrics)
        return Objective(objective.metric, direction or objective.direction)
    there = sorted({name for each in metrics for name in each})
    if by not in there:
        raise ConfigError(f"No run has the metric {by!r}.{nearest(by, there)} There are: {', '.join(there) or 'none'}.")
    known = next((each.direction for each in objectives if each.metric == by), None)
    if direction is None and known is None and "loss" not in by and "perplexity" not in by:
        raise ConfigError(f"Is a high {by} good or bad? Say --direction maximize or --direction minimize.")
    return Objective(by, direction or known or "minimize")


def what_differs(opened: Sequence[Opened], objective: Objective) -> Iterator[str]:
    """Say what the experiments do not have in common, so that their metrics may not mean the same."""
    rows = {tuple(sorted(one.saved.data.values())) for one in opened if one.saved.data}
    if len(rows) > 1:
        yield f"The experiments have different rows: compare {objective.metric} only if they evaluate on the same ones."
    configs = [one.config(run.number) for one in opened for run in one.experiment.runs]
    trainers = {str((config.get("trainer") or {}).get("_target_")) for config in configs}
    if len(trainers) > 1 and "loss" in objective.metric:
        yield f"The runs have different trainers ({', '.join(sorted(trainers))}), whose losses are not the same thing."
    models = {str((config.get("model") or {}).get("name")) for config in configs}
    if len(models) > 1 and "loss" in objective.metric:
        yield (
            f"The runs have different base models ({', '.join(sorted(models))}): a loss is one of tokens, and each "
            "tokenizer cuts its own."
        )


def _as_typed(folder: Path) -> Path:
    return Path(shown(folder))


def _names(opened: Sequence[Opened]) -> list[str]:
    """Return the shortest names that tell the experiments apart."""
    for names in (
        [one.experiment.spec.name for one in opened],
        [one.root.resolve().name for one in opened],
        [f"{one.experiment.spec.name}/{one.root.resolve().name}" for one in opened],
    ):
        if len(set(names)) == len(names):
            return names
    return [shown(one.root) for one in opened]


def _typed(opened: Opened, run: Run) -> dict[str, str]:
    """Return the overrides of a run by their keys; a clone's own come last and win."""
    record = opened.saved.run(run.number)
    words = run.overrides if record is None or record.job is None else record.job
    typed = {override_key(word): word for word in words}
    return {key: word for key, word in typed.items() if key.partition(".")[0] not in EXPERIMENT_KEYS}


def _value(config: Mapping[str, Any], key: str, typed: Mapping[str, str]) -> str | None:
    found: Any = config
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    if found is None or isinstance(found, Mapping):  # a group, or a key that is not there
        return typed.get(key)
    return f"{key}={found if isinstance(found, str) else json.dumps(found)}"


def _place(entry: Entry, objective: Objective) -> tuple[bool, bool, tuple[bool, bool, float]]:
    return entry.run.state is RunState.FAILED, entry.run.standing.is_rough, objective.sort_key(entry.run.metrics)


def labels_of(entries: Sequence[Entry], width: int | None = None) -> list[str]:
    """Return what tells each run from the others, by the overrides that not all have."""
    found = tell_apart({place: entry.parts for place, entry in enumerate(entries)}, width)
    return [found.lines[place] for place in range(len(entries))]


def _print(entries: Sequence[Entry], objective: Objective) -> None:
    names = list(dict.fromkeys(["loss", "eval_loss", objective.metric]))
    names = [name for name in names if any(name in entry.run.metrics for entry in entries)]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("experiment", "run", "overrides", "state", "step", *names, "time"):
        is_text = head in ("experiment", "overrides", "state")
        table.add_column(head, justify="left" if is_text else "right", no_wrap=True, overflow="ignore")
    width = 60 if sys.stdout.isatty() else None
    for place, (entry, label) in enumerate(zip(entries, labels_of(entries, width), strict=True)):
        run, value = entry.run, objective.value(entry.run.metrics)
        is_best = place == 0 and value is not None and not math.isnan(value)
        steps = f"/{run.plan.steps}" if run.plan else ""
        figures = [_number(run.metrics.get(name)) for name in names]
        cells = [entry.experiment, f"{'★ ' if is_best else ''}{run.number}", label, run.state.value]
        style = "bold green" if is_best else STYLES.get(run.state, "")
        table.add_row(*map(Text, [*cells, f"{run.step}{steps}", *figures, duration(run.seconds)]), style=style)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 400)
    console.print(f"ranked by {objective.metric}, {objective.direction}\n", style="bold")
    console.print(table, soft_wrap=True)


def _plain(entries: Sequence[Entry], objective: Objective, notes: Sequence[str]) -> dict[str, Any]:
    common = set.intersection(*(set(entry.parts) for entry in entries)) if len(entries) > 1 else set()
    runs = [
        {
            "experiment": entry.experiment,
            "directory": shown(entry.opened.root),
            "run": entry.run.number,
            "overrides": [part for part in entry.parts if part not in common],
            "state": entry.run.state.value,
            "step": entry.run.step,
            "value": _finite(objective.value(entry.run.metrics)),
            "metrics": {name: _finite(value) for name, value in entry.run.metrics.items()},
            "seconds": round(entry.run.seconds, 3),
        }
        for entry in entries
    ]
    return {"metric": objective.metric, "direction": objective.direction, "runs": runs, "notes": list(notes)}


def _finite(value: float | None) -> float | str | None:
    return value if value is None or math.isfinite(value) else str(value)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
