"""``rfflow ls`` and ``rfflow show``: the experiments there are, and what the end of one printed, at any time."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rfflow.errors import RfflowError
from rfflow.files import shown, typed_command
from rfflow.results.opened import Opened, experiments_in, last_change, open_experiment, unlisted_in
from rfflow.runs.run import Run, RunState
from rfflow.tracking.layout import leader, standings
from rfflow.tracking.table import print_end


def ls(argv: Sequence[str]) -> int:
    """List experiments; return the exit status."""
    parser = argparse.ArgumentParser(prog=f"{typed_command()} ls", description="List experiments, living ones first.")
    parser.add_argument("dir", nargs="?", default="outputs", help="where to look (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="a JSON list, with sizes in bytes and times in seconds")
    args = parser.parse_args(argv)
    folder = Path(args.dir).expanduser()
    if not folder.is_dir():
        print(f"rfflow ls: there is no folder {args.dir}. Experiments lie under outputs/.", file=sys.stderr)
        return 1
    found, damaged = [], []
    for root in experiments_in(folder):
        try:
            found.append(open_experiment(root))
        except RfflowError as error:
            damaged.append(str(error))
    found.sort(key=lambda one: (not one.is_living, -one.experiment.started))
    rows = [listed(one) for one in found]
    if args.json:
        print(json.dumps(rows, indent=2))
    elif rows:
        _print_list(rows)
    elif not damaged:
        print(f"No experiments in {shown(folder)}. To begin one: {typed_command()} +recipe=sft --multirun lr=1e-3,1e-4")
    for said in damaged:
        print(f"rfflow ls: {said}", file=sys.stderr)
    if others := [shown(path) for path in unlisted_in(folder)]:
        print(
            f"rfflow ls: not listed, because they were run with checkpoint.every=null: {', '.join(others[-3:])}"
            f"{f' and {len(others) - 3} more' if len(others) > 3 else ''}",
            file=sys.stderr,
        )
    return 0


def show(argv: Sequence[str]) -> int:
    """Show how the runs of an experiment stand; return the exit status."""
    parser = argparse.ArgumentParser(
        prog=f"{typed_command()} show", description="What the end of an experiment prints, at any time."
    )
    parser.add_argument("dir", help="an experiment's directory")
    parser.add_argument("--json", action="store_true", help="a JSON object with every run")
    args = parser.parse_args(argv)
    try:
        opened = open_experiment(args.dir)
    except RfflowError as error:
        print(f"rfflow show: {error}", file=sys.stderr)
        return 1
    if args.json:
        runs = [described(opened, run) for run in opened.experiment.runs]
        print(json.dumps(listed(opened) | {"runs": runs, "versions": dict(opened.saved.versions)}, indent=2))
        return 0
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    print_end(console, opened.experiment)
    return 0


def listed(opened: Opened) -> dict[str, Any]:
    """Return what the list has on an experiment."""
    experiment, best = opened.experiment, leader(opened.experiment)
    objective = experiment.spec.objective.standing(run.metrics for run in experiment.runs)
    return {
        "name": experiment.spec.name,
        "directory": shown(experiment.paths.root),
        "started": experiment.started,
        "changed": last_change(experiment.paths),
        "is_living": opened.is_living,
        "runs": len(experiment.runs),
        "states": dict(Counter(run.state.value for run in experiment.runs)),
        "best": None if best is None else best.number,
        "metric": objective.metric,
        "direction": objective.direction,
        "value": None if best is None else experiment.spec.objective.value(best.metrics),
        "bytes": _size(experiment.paths.root, [run.paths.root for run in experiment.runs]),
    }


def described(opened: Opened, run: Run) -> dict[str, Any]:
    """Return what is known of a run."""
    ranks = [one.number for one in standings(opened.experiment)]
    is_there = run.paths.final.is_dir()
    return {
        "run": run.number,
        "rank": ranks.index(run.number) + 1 if run.state is not RunState.DELETED else None,
        "state": run.state.value,
        "parent": run.parent,
        "overrides": list(run.overrides),
        "chunk": len(run.chunks),
        "chunks": len(run.plan) if run.plan else None,
        "step": run.step,
        "steps": run.plan.steps if run.plan else None,
        "seconds": round(run.seconds, 3),
        "metrics": {name: value if math.isfinite(value) else str(value) for name, value in run.metrics.items()},
        "activations": None if run.activations is None else str(run.activations),
        "activations_why": None if run.activations is None else run.activations.why,
        "model": shown(run.paths.final) if is_there else None,
        "error": None if run.error is None else str(run.error),
    }


def _print_list(rows: Sequence[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("name", "when", "runs", "states", "best", "metric", "disk", "directory"):
        is_number = head in ("runs", "disk")
        table.add_column(head, justify="right" if is_number else "left", no_wrap=True, overflow="ignore")
    for row in rows:
        states = ", ".join(f"{count} {state}" for state, count in row["states"].items())
        best = "-" if row["best"] is None else f"run {row['best']}"
        metric = "-" if row["value"] is None else f"{row['metric']} {row['value']:.4g}"
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(row["started"]))
        cells = [row["name"], when, str(row["runs"]), states, best, metric, readable_size(row["bytes"])]
        style = "green" if row["is_living"] else ""
        table.add_row(*(Text(cell) for cell in [*cells, row["directory"]]), style=style)
    Console(highlight=False, width=None if sys.stdout.isatty() else 400).print(table, soft_wrap=True)


def readable_size(size: float) -> str:
    """Return a number of bytes as people write it: 29 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if size >= 10 or unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _size(root: Path, runs: Sequence[Path]) -> int:
    """Return the bytes that an experiment takes, a file with several names counted once."""
    seen: dict[tuple[int, int], int] = {}
    inside = root.absolute()
    for folder in {root, *(run for run in runs if not run.is_relative_to(inside))}:
        for place, _, names in os.walk(folder):
            for name in names:
                try:
                    status = os.lstat(os.path.join(place, name))
                except OSError:
                    continue  # it goes while we look
                seen[status.st_dev, status.st_ino] = status.st_size
    return sum(seen.values())
