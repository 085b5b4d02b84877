"""The terminal's texts: the table of runs, the ranking, the line on a chunk. They fit the width they are given."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.text import Text

from rfflow.files import shown
from rfflow.runs.activations import are_news
from rfflow.runs.chunks import ChunkResult
from rfflow.runs.experiment import Experiment
from rfflow.runs.run import Run, RunState
from rfflow.tracking.labels import clip_middle, headed_labels, labels
from rfflow.tracking.runs_csv import error_line

STYLES = {RunState.STOPPED: "yellow", RunState.FAILED: "red"}
GAP = 2
"""Blanks between two columns."""
MAX_HEAD = 12
MIN_LABEL = 12
"""Characters that the overrides get, whatever else has to go."""


def live_table(experiment: Experiment, console: Console) -> RenderableType:
    """Return the table of all runs; where the terminal is not high enough, of the best and those that train."""
    runs = [run for run in experiment.runs if run.state is not RunState.DELETED]
    room = max(1, console.height - 6)
    shown_runs = runs
    if len(runs) > room:
        training = {run.number for run in runs if run.turn is not None}
        best = {run.number for run in experiment.ranked()[: max(1, room - len(training))]}
        shown_runs = [run for run in runs if run.number in best | training][:room]
    rows = [cells | {"left": _left(run)} for cells, run in zip(_cells(experiment, shown_runs), shown_runs, strict=True)]
    styles: dict[int, str] = {}
    for row, run in zip(rows, shown_runs, strict=True):
        if run.turn is not None:
            row["state"] = "training"
            styles[run.number] = "bold green"
    left = experiment.seconds_left()
    notes = [experiment.spec.name, count_runs(len(runs))]
    if len(runs) > len(shown_runs):
        notes.append(f"{len(runs) - len(shown_runs)} more in {shown(experiment.paths.runs_table)}")
    spent = sum(run.metrics.get("eval_cost", 0.0) for run in experiment.runs)
    states = {run.state for run in runs}
    if not any(state.is_live for state in states):  # what is left is for those to say who stopped them
        notes += ["waiting for an op"] if RunState.STOPPED in states else []
    elif not math.isnan(left):
        notes.append(f"about {rough(left)} left")
    if spent:
        notes.append(f"{spent:.2g} USD spent")
    return Group(
        Text(),
        _table(experiment, shown_runs, rows, console.width, styles),
        Text(),
        Text(" " + " · ".join(notes), no_wrap=True, overflow="ellipsis"),
        Text(" " + tensorboard_command(experiment), style="dim", no_wrap=True, overflow="ellipsis"),
    )


def ranking(experiment: Experiment, width: int, encoding: str = "utf-8") -> Text:
    """Return the final table: best first by the objective, the best one marked; runs that failed come last."""
    objective = experiment.spec.objective
    star = "★" if encoding.lower().startswith("utf") else "*"
    runs = standings(experiment)
    rows = [cells | {"time": duration(run.seconds)} for cells, run in zip(_cells(experiment, runs), runs, strict=True)]
    styles: dict[int, str] = {}
    if (best := leader(experiment)) is not None:
        rows[0]["run"] = f"{star} {best.number}"
        styles[best.number] = "bold green"
    stands_in = objective.standing(run.metrics for run in experiment.runs) != objective
    metric = "loss, as nothing was evaluated" if stands_in else objective.metric
    title = f"{experiment.spec.name}: ranked by {metric}, {objective.direction}"
    return Text.assemble((f"\n{title}\n\n", "bold"), _table(experiment, runs, rows, width, styles), no_wrap=True)


def standings(experiment: Experiment) -> list[Run]:
    """Return the runs from best to worst; those that failed come last, and those that were deleted are left out."""
    runs = [run for run in experiment.ranked() if run.state is not RunState.DELETED]
    return sorted(runs, key=lambda run: run.state is RunState.FAILED)


def leader(experiment: Experiment) -> Run | None:
    """Return the best run, where there is one that can be ranked."""
    best = next(iter(standings(experiment)), None)
    is_ranked = best is not None and not experiment.spec.objective.sort_key(best.metrics)[0]
    return best if is_ranked and best is not None and best.state is not RunState.FAILED else None


def chunk_line(experiment: Experiment, run: Run, result: ChunkResult) -> str:
    """Return one line on one chunk, for where there is no terminal."""
    chunks, steps = (len(run.plan), run.plan.steps) if run.plan else ("?", "?")
    parts = [
        f"chunk {result.chunk + 1}/{chunks}",
        f"run {run.number}",
        *([f"slot {result.slot}"] if experiment.slots > 1 else []),
        labels(experiment.runs, 40)[run.number],
        f"step {result.step}/{steps}",
        *(f"{name} {_number(run, name)}" for name in _metrics(experiment) if name in run.metrics),
        duration(result.seconds),
    ]
    return "  ".join(parts)


def failure(experiment: Experiment, run: Run) -> str:
    """Return what a run failed of and where its trace is, as two lines."""
    error = error_line(run) if run.error is not None else "no reason known"
    error = error if len(error) <= 200 else f"{error[:199]}…"
    label = labels(experiment.runs, 40)[run.number]
    return f"run {run.number}  {label}  failed: {error}\n  trace: {shown(run.paths.log)}"


def unusual_activations(experiment: Experiment) -> list[str]:
    """Return a line for what is done with activations though nobody has set it, and the runs that do it."""
    runs: dict[str, list[str]] = {}
    for run in experiment.runs:
        if run.activations is not None and not run.activations.is_usual:
            runs.setdefault(run.activations.sentence, []).append(str(run.number))
    return [f"run{'s' * (len(who) > 1)} {', '.join(who)}  {what}" for what, who in runs.items()]


def tensorboard_command(experiment: Experiment) -> str:
    """Return the command that shows the curves."""
    return f"tensorboard --logdir {shlex.quote(shown(experiment.paths.tensorboard))}"


def duration(seconds: float) -> str:
    """Return a length of time: 3.1 s, 2:05, 1:02:03."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def rough(seconds: float) -> str:
    """Return an estimate without tenths of seconds."""
    return f"{seconds:.0f} s" if seconds < 59.5 else duration(seconds)


def count_runs(number: int) -> str:
    """Return "1 run", "2 runs"."""
    return f"{number} run" if number == 1 else f"{number} runs"


def _cells(experiment: Experiment, runs: Sequence[Run]) -> list[dict[str, str]]:
    """Return what stands in the runs' rows, by the heads of the columns."""
    has_parents = any(run.parent is not None for run in experiment.runs)
    has_news = are_news(run.activations for run in experiment.runs)
    metrics, rows = _metrics(experiment), []
    for run in runs:
        chunks, steps = (f"/{len(run.plan)}", f"/{run.plan.steps}") if run.plan else ("", "")
        row = {
            "run": str(run.number),
            **({"of": "" if run.parent is None else str(run.parent)} if has_parents else {}),
            "overrides": "",
            "state": run.state.value,
            **({"activations": "-" if run.activations is None else str(run.activations)} if has_news else {}),
            **({"slot": _slot(run)} if experiment.slots > 1 else {}),
            "chunk": f"{len(run.chunks)}{chunks}",
            "step": f"{run.step}{steps}",
            **{name: _number(run, name) for name in metrics},
        }
        rows.append(row)
    return rows


def _table(
    experiment: Experiment, runs: Sequence[Run], rows: Sequence[dict[str, str]], width: int, styles: Mapping[int, str]
) -> Text:
    """Lay the rows out so that none is wrapped: the overrides get the room that the numbers leave.

    By hand, because a ``rich.table.Table`` of 32 runs takes 20 ms to draw and cannot be told which column gives way.
    """
    heads = list(rows[0]) if rows else ["run", "overrides", "state"]
    # Where even that is too little, what can be found elsewhere goes: time, the training loss, steps.
    for head in ("activations", "time", "loss", "slot", "step", "left"):
        if _label_room(_widths(heads, rows), width) < MIN_LABEL and head in heads and len(_metrics(experiment)) > 1:
            heads.remove(head)
    names = headed_labels(experiment.runs, max(MIN_LABEL, _label_room(_widths(heads, rows), width)))
    for run, row in zip(runs, rows, strict=True):
        row["overrides"] = names.lines[run.number]
    widths = _widths(heads, rows)
    shown_heads = {head: clip_middle(head, MAX_HEAD) for head in heads}
    if names.heading:
        shown_heads["overrides"] = clip_middle(names.heading, widths["overrides"])
    table = Text(no_wrap=True, overflow="ellipsis", end="")
    table.append(_line(shown_heads, widths) + "\n", "bold")
    table.append(" " + "─" * (sum(widths.values()) + GAP * (len(widths) - 1)) + "\n", "dim")
    for run, row in zip(runs, rows, strict=True):
        table.append(_line(row, widths) + "\n", styles.get(run.number) or STYLES.get(run.state))
    return table


def _line(row: Mapping[str, str], widths: Mapping[str, int]) -> str:
    cells = []
    for head, width in widths.items():
        blanks = " " * (width - cell_len(row[head]))
        cells.append(row[head] + blanks if head in ("overrides", "state") else blanks + row[head])
    return " " + (" " * GAP).join(cells)


def _widths(heads: Sequence[str], rows: Sequence[dict[str, str]]) -> dict[str, int]:
    return {head: max(min(len(head), MAX_HEAD), *(cell_len(row[head]) for row in rows), 0) for head in heads}


def _label_room(widths: Mapping[str, int], width: int) -> int:
    others = [room for head, room in widths.items() if head != "overrides"]
    return width - 1 - sum(others) - GAP * len(others)


def _metrics(experiment: Experiment) -> list[str]:
    """Return the metrics to show: the losses, and the objective if it is another."""
    names = [] if experiment.runs and all(run.is_evaluation for run in experiment.runs) else ["loss"]
    if any("eval_loss" in run.metrics for run in experiment.runs):
        names.append("eval_loss")
    if experiment.spec.objective.metric not in ("loss", "eval_loss"):
        names.append(experiment.spec.objective.metric)
    return names


def _slot(run: Run) -> str:
    """Return where a run trains, or has trained last."""
    if run.turn is not None:
        return str(run.turn.slot)
    return str(run.chunks[-1].slot) if run.chunks else "-"


def _number(run: Run, metric: str) -> str:
    """Return a metric; with the limits between which that of the whole set lies, where it is an estimate."""
    value = run.metrics.get(metric)
    if value is None:
        return "-"
    low, high = run.metrics.get(f"{metric}_low"), run.metrics.get(f"{metric}_high")
    if not run.is_evaluation or low is None or high is None:
        return f"{value:.4g}"
    return f"{value:.3f}" if low == high else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _left(run: Run) -> str:
    """Return the time on the device that a run still needs."""
    if run.plan is None or not run.step or not run.chunks or not run.state.is_live:
        return "-"
    return rough(run.seconds / run.chunks[-1].step * (run.plan.steps - run.step))
