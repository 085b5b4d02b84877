"""What the terminal shows: a live table while the runs train, and the ranking at the end."""

from __future__ import annotations

import atexit
import io
import logging
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from rfflow.checkpointing.checkpoints import Checkpoints
from rfflow.files import shown
from rfflow.runs.chunks import ChunkResult
from rfflow.runs.experiment import Experiment
from rfflow.runs.run import Run, RunState
from rfflow.tracking.layout import (
    chunk_line,
    count_runs,
    failure,
    leader,
    live_table,
    ranking,
    rough,
    standings,
    tensorboard_command,
    unusual_activations,
)
from rfflow.tracking.notebook import NotebookOutput, is_notebook
from rfflow.tracking.streams import NEAREST, announce_on, no_longer_on, stream_handlers

_STOPPED = (RunState.STOPPED, RunState.DELETED)


class _Screen(Console):
    """A console into whose prints an announcement may fall, and whose readers may go away."""

    _printing = 0
    _late: tuple[str, ...] = ()

    def print(self, *objects: Any, **options: Any) -> None:
        """Print, and then what was announced meanwhile."""
        self._printing += 1
        try:
            super().print(*objects, **options)
        finally:
            self._printing -= 1
        while self._late and not self._printing:
            text, *late = self._late
            self._late = tuple(late)
            _say(self, text)

    def announce(self, text: str) -> None:
        """Print a line as soon as nothing else is being printed."""
        if self._printing:
            self._late += (text,)
        else:
            _say(self, text)

    # Others say that nobody reads any more; rich would end the process with status 1.
    def on_broken_pipe(self) -> None:
        raise  # rich calls this while it handles the error


class LiveTable:
    """Show all runs while they train, and at the end which was best and where the adapters are.

    On a terminal, and in a notebook, it is one table, drawn again at the events. Elsewhere (a log file, a pipe) it is
    one line a chunk.
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
        self._output: NotebookOutput | None = None
        self._drawn = -math.inf
        self._handlers: list[tuple[logging.StreamHandler[TextIO], TextIO]] = []

    # --- events -------------------------------------------------------------------------------------------------------

    def on_experiment_start(self, experiment: Experiment) -> None:
        """Show every run as queued."""
        # Bound to the stream of this moment: while a run trains, sys.stdout may be its log file.
        console = self._console = self._console or _Screen(file=sys.stdout, highlight=False)
        if isinstance(console.file, io.TextIOWrapper):
            console.file.reconfigure(errors=NEAREST)  # an ASCII locale has no lines and no stars
        if console.is_terminal and not console.is_dumb_terminal:
            self._open(experiment, console)
        else:
            _say(
                console, f"{experiment.spec.name}: {count_runs(len(experiment.runs))} in {shown(experiment.paths.root)}"
            )
            _say(console, tensorboard_command(experiment))
            if is_notebook():
                self._output = NotebookOutput()
                self._draw(experiment)

    def on_chunk_start(self, experiment: Experiment, run: Run) -> None:
        """Mark the run that trains now."""
        self._draw(experiment)

    def on_log(self, experiment: Experiment) -> None:
        """Show new losses, if the table has been the same for a while."""
        if time.monotonic() - self._drawn >= self._refresh_seconds:
            self._draw(experiment)

    def on_chunk_end(self, experiment: Experiment, run: Run, result: ChunkResult) -> None:
        """Where there is no table, print a line; the table is drawn when the next chunk starts, which is now."""
        if self._live is None and self._output is None and self._console is not None:
            _say(self._console, chunk_line(experiment, run, result))

    def on_run_end(self, experiment: Experiment, run: Run) -> None:
        """Tell at once that a run failed, and where its trace is."""
        if run.state is RunState.FAILED and self._console is not None:
            _say(self._console, failure(experiment, run), style="red")
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
            patience = "" if timeout is None else f" for up to {rough(timeout)}"
            is_any_live = any(run.state.is_live for run in experiment.runs)
            state = "Every live run is stopped" if is_any_live else "Every run has ended"
            _say(self._console, f"{state}. Waiting{patience} for an op in {shown(control)}")
        self._draw(experiment)

    def on_experiment_end(self, experiment: Experiment) -> None:
        """Replace the table by the ranking, and say where things are."""
        console, output = self._console, self._output
        self.close(keep=False)
        if console is None:
            return
        if output is not None:
            output.show(lambda room: live_table(experiment, room))
        print_end(console, experiment)

    def on_exception(self) -> None:
        """Give the terminal back."""
        self.close()

    def close(self, keep: bool = True) -> None:
        """Leave the terminal as it was found; safe to call twice.

        Args:
            keep: whether the table stays on the screen as it was last.
        """
        live, self._live, self._output = self._live, None, None
        if live is not None:
            live.transient = not keep
            try:
                live.stop()
            finally:  # a terminal that is gone takes no last word, and holds nobody
                for handler, stream in self._handlers:
                    handler.setStream(stream)
                self._handlers.clear()
                atexit.unregister(self.close)
                no_longer_on(self._announce)

    # --- the live table -----------------------------------------------------------------------------------------------

    def _open(self, experiment: Experiment, console: Console) -> None:
        out, err = sys.stdout, sys.stderr
        # No thread of its own: it would draw while a run holds the standard output.
        self._live = Live(console=console, auto_refresh=False, redirect_stdout=True, redirect_stderr=True)
        self._live.start()
        # Log handlers hold the streams that Live has just put its own in front of.
        for handler in stream_handlers():
            if handler.stream is out or handler.stream is err:
                self._handlers.append((handler, handler.stream))
                handler.setStream(sys.stdout if handler.stream is out else sys.stderr)
        atexit.register(self.close)
        announce_on(self._announce)
        self._draw(experiment)

    def _announce(self, text: str) -> None:
        if isinstance(self._console, _Screen):
            self._console.announce(text)
        elif self._console is not None:
            _say(self._console, text)

    def _draw(self, experiment: Experiment) -> None:
        if self._live is not None:
            self._live.update(live_table(experiment, self._live.console), refresh=True)
            self._drawn = time.monotonic()
        elif self._output is not None:
            self._output.show(lambda console: live_table(experiment, console))
            self._drawn = time.monotonic()


def print_end(console: Console, experiment: Experiment) -> None:
    """Print the ranking, and where things are."""
    console.print(ranking(experiment, console.width, console.encoding))
    best = leader(experiment)
    for run in standings(experiment):
        if run.state is RunState.COMPLETED:
            result = run.paths.items if run.is_evaluation else run.paths.final
            _say(console, f"run {run.number}  {shown(result)}")
        elif run.state is RunState.STOPPED and run is best:
            for step in Checkpoints(run.paths.checkpoints).steps()[:1]:
                folder = run.paths.checkpoints / f"step-{step}"
                _say(console, f"run {run.number}  {shown(folder)}  (stopped)")
    for run in experiment.runs:
        if run.state is RunState.FAILED:
            _say(console, failure(experiment, run), style="red")
    for line in (*unusual_activations(experiment), *what_stopping_saved(experiment.runs)):
        _say(console, line)
    _say(console, tensorboard_command(experiment))


def what_stopping_saved(runs: Sequence[Run]) -> list[str]:
    """Return a sentence on how much was done of what was planned, where runs were stopped before their ends."""
    said = []
    for is_evaluation, what in ((False, "steps were taken"), (True, "questions were asked")):
        plans = [(run, run.plan.steps) for run in runs if run.plan is not None and run.is_evaluation is is_evaluation]
        early = [run for run, steps in plans if run.state in _STOPPED and run.step < steps]
        if early:
            done, planned = sum(run.step for run, _ in plans), sum(steps for _, steps in plans)
            of_all = f"{len(early)} of {len(plans)} runs {'was' if len(early) == 1 else 'were'} stopped early"
            said.append(f"{of_all}: {done} of {planned} {what} ({done / planned:.0%})")
    return said


def _say(console: Console, line: str, style: str | None = None) -> None:
    """Print a line whole: no markup, no wrapping, so that a path can be copied."""
    console.print(Text(line, style=style or ""), soft_wrap=True)
