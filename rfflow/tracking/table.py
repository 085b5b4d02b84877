"""What the terminal shows: a live table while the runs train, and the ranking at the end."""

from __future__ import annotations

import atexit
import io
import logging
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from rfflow.runs import ChunkResult, Experiment, Run, RunState
from rfflow.tracking.files import shown
from rfflow.tracking.labels import clip_middle, labels
from rfflow.tracking.runs_csv import error_line

STYLES = {
    RunState.RUNNING: "green",
    RunState.STOPPED: "yellow",
    RunState.FAILED: "bold red",
}
GAP = 2
"""Blanks between two columns."""
MAX_HEAD = 12
MIN_LABEL = 12
"""Characters that the overrides get, whatever else has to go."""


class LiveTable:
    """Show all runs while they train, and at the end which was best and where the adapters are.

    On a terminal it is one table, drawn again at the events. Elsewhere (a log file, a pipe) it is one line a chunk.
    Whatever is printed or logged meanwhile appears above the table.

    Args:
        refresh_seconds: how often, at most, the trainers' logs redraw the table; a change of state or chunk
            always does.
        console: where to show it; the standard output as it is when the experiment starts, if not given.
    """

    def __init__(self, refresh_seconds: float = 0.2, console: Console | None = None):
        self._refresh_seconds = refresh_seconds
        self._console = console
        self._live: Live | None = None
        self._drawn = -math.inf
        self._active: int | None = None
        """The run that holds the device."""
        self._handlers: list[tuple[logging.StreamHandler[TextIO], TextIO]] = []

    # --- events -------------------------------------------------------------------------------------------------------

    def on_experiment_start(self, experiment: Experiment) -> None:
        """Show every run as queued."""
        # Bound to the stream of this moment: while a run trains, sys.stdout may be its log file.
        console = self._console = self._console or Console(file=sys.stdout, highlight=False)
        if isinstance(console.file, io.TextIOWrapper):
            console.file.reconfigure(
                errors="replace"
            )  # a shortened label must not end an experiment in an ASCII locale
        if console.is_terminal and not console.is_dumb_terminal:
            self._open(experiment, console)
        else:
            _say(console, f"{experiment.spec.name}: {_runs(len(experiment.runs))} in {shown(experiment.paths.root)}")
            _say(console, tensorboard_command(experiment))

    def on_chunk_start(self, experiment: Experiment, run: Run) -> None:
        """Mark the run that trains now."""
        self._active = run.number
        self._draw(experiment)

    def on_log(self, experiment: Experiment) -> None:
        """Show new losses, if the table has been the same for a while."""
        if time.monotonic() - self._drawn >= self._refresh_seconds:
            self._draw(experiment)

    def on_chunk_end(self, experiment: Experiment, run: Run, result: ChunkResult) -> None:
        """Where there is no table, print a line; the table is drawn when the next chunk starts, which is now."""
        self._active = None
        if self._live is None and self._console is not None:
            _say(self._console, chunk_line(experiment, run, result))

    def on_run_end(self, experiment: Experiment, run: Run) -> None:
        """Tell at once that a run failed, and where its trace is."""
        self._active = None
        if run.state is RunState.FAILED and self._console is not None:
            label = labels(experiment.runs, 40)[run.number]
            _say(self._console, f"run {run.number}  {label}  failed: {_clip(_error(run), 200)}", style="red")
            _say(self._console, f"  trace: {shown(run.paths.log)}")
        self._draw(experiment)

    def on_run_change(self, experiment: Experiment) -> None:
        """Show what an op did to a run."""
        self._draw(experiment)

    def on_op(self, experiment: Experiment, text: str) -> None:
        """Say what an op did."""
        if self._console is not None:
            _say(self._console, text)
        self._draw(experiment)

    def on_wait(self, experiment: Experiment, control: Path, timeout: float | None) -> None:
        """Say what would let the experiment go on."""
        if self._console is not None:
            patience = "" if timeout is None else f" for up to {_rough(timeout)}"
            _say(self._console, f"Every live run is stopped. Waiting{patience} for an op in {shown(control)}")
        self._draw(experiment)

    def on_experiment_end(self, experiment: Experiment) -> None:
        """Replace the table by the ranking, and say where things are."""
        console = self._console
        self.close(keep=False)
        if console is None:
            return
        console.print(ranking(experiment, console.width, console.encoding))
        for run in experiment.ranked():
            if run.state is RunState.COMPLETED:
                _say(console, f"run {run.number}  {shown(run.paths.final)}")
        for run in experiment.runs:
            if run.state is RunState.FAILED:
                _say(console, f"run {run.number} failed: {_clip(_error(run), 200)}", style="red")
                _say(console, f"  trace: {shown(run.paths.log)}")
        _say(console, tensorboard_command(experiment))

    def on_exception(self) -> None:
        """Give the terminal back."""
        self.close()

    def close(self, keep: bool = True) -> None:
        """Leave the terminal as it was found; safe to call twice.

        Args:
            keep: whether the table stays on the screen as it was last.
        """
        live, self._live = self._live, None
        if live is not None:
            live.transient = not keep
            live.stop()
            for handler, stream in self._handlers:
                handler.setStream(stream)
            self._handlers.clear()
            atexit.unregister(self.close)

    # --- the live table -----------------------------------------------------------------------------------------------

    def _open(self, experiment: Experiment, console: Console) -> None:
        out, err = sys.stdout, sys.stderr
        # No thread of its own: it would draw while a run holds the standard output.
        self._live = Live(console=console, auto_refresh=False, redirect_stdout=True, redirect_stderr=True)
        self._live.start()
        # Log handlers hold the streams that Live has just put its own in front of.
        for handler in _stream_handlers():
            if handler.stream is out or handler.stream is err:
                self._handlers.append((handler, handler.stream))
                handler.setStream(sys.stdout if handler.stream is out else sys.stderr)
        atexit.register(self.close)
        self._draw(experiment)

    def _draw(self, experiment: Experiment) -> None:
        if self._live is not None:
            self._live.update(live_table(experiment, self._live.console, self._active), refresh=True)
            self._drawn = time.monotonic()


def live_table(experiment: Experiment, console: Console, active: int | None) -> RenderableType:
    """Return the table of all runs; where the terminal is not high enough, of the best and the one that trains."""
    runs = [run for run in experiment.runs if run.state is not RunState.DELETED]
    room = max(1, console.height - 6)
    shown_runs = runs
    if len(runs) > room:
        best = {run.number for run in experiment.ranked()[: room - 1]}
        shown_runs = [run for run in runs if run.number in best or run.number == active][:room]
    rows = [_cells(experiment, run) | {"left": _left(run)} for run in shown_runs]
    styles: dict[int, str] = {}
    for row, run in zip(rows, shown_runs, strict=True):
        if run.number == active:
            row["state"] = "training"
            styles[run.number] = "bold"
    left = experiment.seconds_left()
    notes = [experiment.spec.name, _runs(len(runs))]
    if len(runs) > len(shown_runs):
        notes.append(f"{len(runs) - len(shown_runs)} more in {shown(experiment.paths.runs_table)}")
    if not math.isnan(left):
        notes.append(f"about {_rough(left)} left")
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
    runs = [run for run in experiment.ranked() if run.state is not RunState.DELETED]
    runs.sort(key=lambda run: run.state is RunState.FAILED)
    rows = [_cells(experiment, run) | {"time": duration(run.seconds)} for run in runs]
    styles: dict[int, str] = {}
    if runs and runs[0].state is not RunState.FAILED and not objective.sort_key(runs[0].metrics)[0]:
        rows[0]["run"] = f"{star} {runs[0].number}"
        styles[runs[0].number] = "bold green"
    title = f"{experiment.spec.name}: ranked by {objective.metric}, {objective.direction}"
    return Text.assemble((f"\n{title}\n\n", "bold"), _table(experiment, runs, rows, width, styles), no_wrap=True)


def chunk_line(experiment: Experiment, run: Run, result: ChunkResult) -> str:
    """Return one line on one chunk, for where there is no terminal."""
    chunks, steps = (len(run.plan), run.plan.steps) if run.plan else ("?", "?")
    parts = [
        f"chunk {result.chunk + 1}/{chunks}",
        f"run {run.number}",
        labels(experiment.runs, 40)[run.number],
        f"step {result.step}/{steps}",
        *(f"{name} {_number(run, name)}" for name in _metrics(experiment) if name in run.metrics),
        duration(result.seconds),
    ]
    return "  ".join(parts)


def tensorboard_command(experiment: Experiment) -> str:
    """Return the command that shows the curves."""
    return f"tensorboard --logdir {shown(experiment.paths.tensorboard)}"


def duration(seconds: float) -> str:
    """Return a length of time: 3.1 s, 2:05, 1:02:03."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _cells(experiment: Experiment, run: Run) -> dict[str, str]:
    """Return what stands in a run's row, by the heads of the columns."""
    chunks, steps = (f"/{len(run.plan)}", f"/{run.plan.steps}") if run.plan else ("", "")
    return {
        "run": str(run.number),
        "overrides": "",
        "state": run.state.value,
        "chunk": f"{len(run.chunks)}{chunks}",
        "step": f"{run.step}{steps}",
        **{name: _number(run, name) for name in _metrics(experiment)},
    }


def _table(
    experiment: Experiment, runs: Sequence[Run], rows: Sequence[dict[str, str]], width: int, styles: Mapping[int, str]
) -> Text:
    """Lay the rows out so that none is wrapped: the overrides get the room that the numbers leave.

    By hand, because a ``rich.table.Table`` of 32 runs takes 20 ms to draw and cannot be told which column gives way.
    """
    heads = list(rows[0]) if rows else ["run", "overrides", "state"]
    # Where even that is too little, what can be found elsewhere goes: time, the training loss, steps.
    for head in ("time", "loss", "step", "left"):
        if _label_room(_widths(heads, rows), width) < MIN_LABEL and head in heads and len(_metrics(experiment)) > 1:
            heads.remove(head)
    names = labels(experiment.runs, max(MIN_LABEL, _label_room(_widths(heads, rows), width)))
    for run, row in zip(runs, rows, strict=True):
        row["overrides"] = names[run.number]
    widths = _widths(heads, rows)
    table = Text(no_wrap=True, overflow="ellipsis", end="")
    table.append(_line({head: clip_middle(head, MAX_HEAD) for head in heads}, widths) + "\n", "bold")
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
    names = ["loss"]
    if any("eval_loss" in run.metrics for run in experiment.runs):
        names.append("eval_loss")
    if experiment.spec.objective.metric not in ("loss", "eval_loss"):
        names.append(experiment.spec.objective.metric)
    return names


def _number(run: Run, metric: str) -> str:
    value = run.metrics.get(metric)
    return "-" if value is None else f"{value:.4g}"


def _left(run: Run) -> str:
    """Return the time on the device that a run still needs."""
    if run.plan is None or not run.step or not run.chunks or not run.state.is_live:
        return "-"
    return _rough(run.seconds / run.chunks[-1].step * (run.plan.steps - run.step))


def _rough(seconds: float) -> str:
    """Return an estimate without tenths of seconds."""
    return f"{seconds:.0f} s" if seconds < 59.5 else duration(seconds)


def _error(run: Run) -> str:
    return error_line(run) if run.error is not None else "no reason known"


def _runs(number: int) -> str:
    return f"{number} run" if number == 1 else f"{number} runs"


def _clip(text: str, room: int) -> str:
    return text if len(text) <= room else f"{text[: room - 1]}…"


def _say(console: Console, line: str, style: str | None = None) -> None:
    """Print a line whole: no markup, no wrapping, so that a path can be copied."""
    console.print(Text(line, style=style or ""), soft_wrap=True)


def _stream_handlers() -> Iterator[logging.StreamHandler[TextIO]]:
    loggers = [logging.root, *logging.Logger.manager.loggerDict.values()]
    for logger in loggers:
        for handler in getattr(logger, "handlers", ()):
            # A FileHandler is a StreamHandler too, but its stream is its own.
            if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
                yield handler
