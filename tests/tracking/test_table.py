"""What stands in the terminal, and in a log file where there is none."""

from __future__ import annotations

import io
import logging
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.cells import cell_len
from rich.console import Console, RenderableType

from rfflow.config.spec import Objective
from rfflow.runs.activations import Activations
from rfflow.runs.experiment import Experiment
from rfflow.runs.run import RunState, Turn
from rfflow.tracking.layout import duration, live_table, ranking, unusual_activations
from rfflow.tracking.streams import announce
from rfflow.tracking.table import LiveTable, _Screen
from tests.tracking.story import FOUR, Story, make_experiment, tell_whole

LONG = [
    ("peft.target_modules=[q_proj,v_proj,k_proj]", "lr=1e-3", "model.name=some/where/over/the/rainbow"),
    ("peft.target_modules=[q_proj]", "lr=1e-4", "model.name=some/where/else"),
]


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """Make four runs under the current directory."""
    monkeypatch.chdir(tmp_path)
    return make_experiment(tmp_path / "outputs" / "sft", *FOUR)


def _lines(what: RenderableType, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=24)
    console.print(what)
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines() if line.strip()]


def _terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=100, height=30)


def test_without_a_terminal_there_is_one_line_a_chunk(
    experiment: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the numbers that one would look for, and the failure as soon as it happens."""
    story = Story(experiment, LiveTable())
    story.begin()
    first, second = experiment.runs[:2]
    assert capsys.readouterr().out == "sft: 4 runs in outputs/sft\ntensorboard --logdir outputs/sft/tb\n"
    story.chunk(first, {"loss": 2.31, "eval_loss": 2.25}, seconds=3.1)
    assert capsys.readouterr().out == "chunk 1/4  run 0  lr=1e-3  step 2/8  loss 2.31  eval_loss 2.25  3.1 s\n"
    story.log(first, {"loss": 2.0}, step=3)
    assert capsys.readouterr().out == ""
    story.fail(second, ValueError("loss is NaN\nand more"))
    assert capsys.readouterr().out == (
        "run 1  lr=1e-1 peft=lora_large  failed: ValueError: loss is NaN\n  trace: outputs/sft/runs/1/run.log\n"
    )


def test_the_end_says_who_won_and_where_everything_is(
    experiment: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ranked by the objective, the best marked, one never evaluated after those; paths; a deleted run is gone."""
    tell_whole(experiment, LiveTable())
    end = capsys.readouterr().out.partition("sft: ranked by eval_loss, minimize")[2].splitlines()
    rows = [line.split() for line in end if "/4" in line and line.split()[0] in ["★", *"01234"]]
    assert [row[1] if row[0] == "★" else row[0] for row in rows] == ["0", "1", "4", "2", "3"]
    assert rows[0][0] == "★" and all(row[0] != "★" for row in rows[1:])
    assert end[-8:] == [
        "run 0  outputs/sft/runs/0/checkpoints/final",
        "run 1  outputs/sft/runs/1/checkpoints/final",
        "run 4  outputs/sft/runs/4/checkpoints/final",
        "run 2  outputs/sft/runs/2/checkpoints/final",
        "run 3  (defaults)  failed: RuntimeError: CUDA out of memory.",
        "  trace: outputs/sft/runs/3/run.log",
        "1 of 6 runs was stopped early: 36 of 48 steps were taken (75%)",
        "tensorboard --logdir outputs/sft/tb",
    ]


def test_where_the_best_was_stopped_its_checkpoint_is_named(
    experiment: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    """Population-based training ends so: the best is a clone whose lineage had its share."""
    story = Story(experiment, LiveTable())
    story.begin()
    for run, loss in zip(experiment.runs, (3.0, 1.0, 2.0, 4.0), strict=False):
        story.chunk(run, {"eval_loss": loss})
        for step in (2, 4):
            (run.paths.checkpoints / f"step-{step}").mkdir(parents=True)
    for run, state in zip(experiment.runs[:3], (RunState.COMPLETED, RunState.STOPPED, RunState.STOPPED), strict=True):
        run.state = state
    story.end()
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "/checkpoints/" in line] == [
        "run 1  outputs/sft/runs/1/checkpoints/step-4  (stopped)",
        "run 0  outputs/sft/runs/0/checkpoints/final",
    ]
    assert lines[-2] == "2 of 4 runs were stopped early: 8 of 32 steps were taken (25%)"


def test_a_failed_run_is_never_the_best(experiment: Experiment) -> None:
    """However low its loss was when it died."""
    story = Story(experiment)
    story.begin()
    for run, loss in zip(experiment.runs[:2], (0.1, 2.0), strict=True):
        story.chunk(run, {"loss": loss})
    story.fail(experiment.runs[0], RuntimeError("no"))
    rows = _lines(ranking(experiment, 80))[3:]
    assert rows[0].split()[:2] == ["★", "1"] and rows[-1].split()[0] == "0"


def test_what_stands_in_for_the_objective_is_what_the_runs_are_ranked_by(experiment: Experiment) -> None:
    """Without an evaluation nobody could say what eval_loss was."""
    story = Story(experiment)
    story.begin()
    story.chunk(experiment.runs[0], {"loss": 2.0})
    assert _lines(ranking(experiment, 80))[0] == "sft: ranked by loss, as nothing was evaluated, minimize"
    story.chunk(experiment.runs[1], {"loss": 2.0, "eval_loss": 3.0})
    assert _lines(ranking(experiment, 80))[0] == "sft: ranked by eval_loss, minimize"


def test_nothing_is_best_before_anything_was_measured(experiment: Experiment) -> None:
    """No star without a number, nor for NaN."""
    story = Story(experiment)
    story.begin()
    story.chunk(experiment.runs[0], {"loss": float("nan")})
    assert not any("★" in line for line in _lines(ranking(experiment, 80)))


def test_the_live_table_tells_how_far_every_run_is(experiment: Experiment) -> None:
    """And how long it will still take, once a chunk has shown how long one takes."""
    story = Story(experiment)
    story.begin()
    story.chunk(experiment.runs[0], {"loss": 2.0, "eval_loss": 2.5})
    experiment.runs[1].turn = Turn(0, 0.0)
    lines = _lines(live_table(experiment, Console(width=120, height=24)))
    head, *rows = (line for line in lines if line.split()[0] in ("run", "0", "1"))
    assert head.split() == ["run", "overrides", "state", "chunk", "step", "loss", "eval_loss", "left"]
    assert rows[0].split() == ["0", "lr=1e-3", "running", "1/4", "2/8", "2", "2.5", "9", "s"]
    assert rows[1].split()[-6:] == ["training", "0/4", "0/8", "-", "-", "-"]


def test_no_time_is_left_to_tell_while_everything_waits(experiment: Experiment) -> None:
    """What runs that are stopped will take is for those to say who resume them."""
    story = Story(experiment)
    story.begin()
    story.chunk(experiment.runs[0], {"loss": 2.0})

    def note() -> str:
        return _lines(live_table(experiment, Console(width=120, height=24)), 120)[-2].strip()

    assert note().startswith("sft · 4 runs · about ")
    for run in experiment.runs:
        run.state = RunState.STOPPED
    assert note() == "sft · 4 runs · waiting for an op"
    for run in experiment.runs:
        run.state = RunState.COMPLETED
    assert note() == "sft · 4 runs"
    for run in experiment.runs[:2]:
        run.metrics["eval_cost"] = 0.123
    assert note() == "sft · 4 runs · 0.25 USD spent"


@pytest.mark.parametrize("objective", [Objective(), Objective("mean_token_accuracy", "maximize")])
@pytest.mark.parametrize("table", ["live", "ranking"])
def test_eighty_columns_are_enough(tmp_path: Path, objective: Objective, table: str) -> None:
    """No cell is cut or wrapped but the overrides, which say what they can."""
    experiment = make_experiment(tmp_path, *LONG, objective=objective)
    story = Story(experiment)
    story.begin()
    for run in experiment.runs:
        story.chunk(run, {"loss": 1.2345, "eval_loss": 1.5e-7, "mean_token_accuracy": 0.87654})
        story.complete(run)
    experiment.runs[0].turn = Turn(0, 0.0)
    found = live_table(experiment, Console(width=80, height=24)) if table == "live" else ranking(experiment, 80)
    lines = _lines(found)
    rows = [line for line in lines if "1/4" in line]
    assert len(rows) == 2 and all(cell_len(line) <= 80 for line in lines)
    for row in rows:
        cells = row.replace("★", " ").split()
        assert "1/4" in cells and "1.5e-07" in cells and "1e-" in row
        assert ("0.8765" in cells) == (objective.metric != "eval_loss")


@pytest.mark.parametrize("table", ["live", "ranking"])
def test_where_keys_have_no_room_they_stand_above_the_values(tmp_path: Path, table: str) -> None:
    """A grid of runs whose values would look alike if they were shortened beside their keys."""
    grid = [(f"lr={lr}", f"seed={seed}") for lr in (0.0001, 0.0002) for seed in (1000, 2000)]
    experiment = make_experiment(tmp_path, *grid, objective=Objective("mean_token_accuracy", "maximize"))
    story = Story(experiment)
    story.begin()
    for run in experiment.runs:
        story.chunk(run, {"loss": 1.2345, "eval_loss": 1.5, "mean_token_accuracy": 0.5 - run.number / 10})
    found = live_table(experiment, Console(width=80, height=24)) if table == "live" else ranking(experiment, 80)
    lines = _lines(found)
    head = next(line for line in lines if "state" in line)
    rows = [line.replace("★", " ").split() for line in lines if "1/4" in line]
    assert head.split()[:4] == ["run", "lr", "seed", "state"]
    assert [row[:3] for row in rows] == [
        ["0", "0.0001", "1000"],
        ["1", "0.0001", "2000"],
        ["2", "0.0002", "1000"],
        ["3", "0.0002", "2000"],
    ]


def test_more_runs_than_lines_show_the_best_and_the_one_that_trains(tmp_path: Path) -> None:
    """A table higher than the terminal could not be drawn over."""
    experiment = make_experiment(tmp_path, *[(f"lr={n}",) for n in range(40)])
    story = Story(experiment)
    story.begin()
    for run in experiment.runs:
        story.chunk(run, {"loss": float(40 - run.number)})
    experiment.runs[3].turn = Turn(0, 0.0)
    lines = _lines(live_table(experiment, Console(width=80, height=24)))
    shown = [int(line.split()[0]) for line in lines if "1/4" in line]
    assert shown == [3, *range(23, 40)] and len(lines) <= 23
    assert any("22 more in" in line for line in lines)


@pytest.mark.parametrize("table", ["live", "ranking"])
def test_activations_are_shown_where_runs_differ_or_nobody_has_set_it_so(experiment: Experiment, table: str) -> None:
    """Kept where there is memory, or as set for all alike, they are nobody's concern."""

    def columns(*every: int | None, is_chosen: bool = True) -> list[str] | None:
        for run, each in zip(experiment.runs, every, strict=True):
            run.activations = None if each is None else Activations(each, "so", is_chosen=is_chosen)
        found = live_table(experiment, Console(width=140, height=24)) if table == "live" else ranking(experiment, 140)
        head, *rows = (line for line in _lines(found, 140) if line.split()[0] in ("run", "0", "1", "2", "3"))
        if "activations" not in head:
            return None
        end = head.index("activations") + len("activations")
        return [row[:end].rpartition("  ")[2].strip() for row in rows]

    assert columns(0, 0, 0, None) is None
    assert columns(2, 2, 2, 2, is_chosen=False) is None
    assert columns(0, 1, 3, None) == ["kept", "recomputed", "every 3rd", "-"]
    assert columns(1, 1, 1, 1) == ["recomputed"] * 4
    assert unusual_activations(experiment) == ["runs 0, 1, 2, 3  Activations of every layer are recomputed: so"]
    assert columns(0, 0, 2, 2, is_chosen=False) == ["kept", "kept", "every 2nd", "every 2nd"]
    assert not unusual_activations(experiment)


def test_on_several_devices_it_says_where_each_run_trains(
    experiment: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment.slots = 2
    story = Story(experiment, LiveTable())
    story.begin()
    story.chunk(experiment.runs[0], {"loss": 2.0})
    assert "run 0  slot 0  lr=1e-3" in capsys.readouterr().out
    experiment.runs[0].turn, experiment.runs[1].turn = Turn(1, 0.0), Turn(0, 0.0)
    lines = _lines(live_table(experiment, Console(width=120, height=24)))
    head, *rows = (line.split() for line in lines if line.split()[0] in ("run", "0", "1", "2"))
    assert head[:4] == ["run", "overrides", "state", "slot"]
    where = {row[0]: row[row.index("training") + 1] for row in rows if "training" in row}
    assert where == {"0": "1", "1": "0"} and rows[2][rows[2].index("queued") + 1] == "-"


def test_values_that_look_like_markup_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """[bold] is a list to Hydra, in the table as in the lines."""
    experiment = make_experiment(tmp_path, ("x=[bold]",), ("x=[q_proj,v_proj]",))
    lines = _lines(live_table(experiment, Console(width=80, height=24)))
    assert any("x=[bold]" in line for line in lines) and any("x=[q_proj,v_proj]" in line for line in lines)
    story = Story(experiment, LiveTable())
    story.begin()
    story.chunk(experiment.runs[0])
    assert "run 0  x=[bold]  step" in capsys.readouterr().out


def test_what_is_printed_and_logged_stands_above_the_table(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through streams and log handlers that were there before, which get back what they had."""
    console = _terminal()
    assert isinstance(console.file, io.StringIO)
    screen = console.file
    monkeypatch.setattr(sys, "stdout", screen)
    handler = logging.StreamHandler(screen)
    logging.root.addHandler(handler)
    try:
        story = Story(experiment, LiveTable(console=console))
        story.begin()
        for say in _ways_to_say():
            before = len(screen.getvalue())
            say("hello")
            written = screen.getvalue()[before:]
            assert "hello" in written and "overrides" in written.partition("hello")[2], "the table was not drawn again"
        story.end()
        assert sys.stdout is screen and handler.stream is screen
    finally:
        logging.root.removeHandler(handler)


def _ways_to_say() -> list[Callable[[str], object]]:
    return [print, logging.getLogger("anybody").warning]


def test_an_announcement_stands_above_the_table_and_tears_nothing(experiment: Experiment) -> None:
    """Ctrl-C in the middle of a chunk: printed past the table, it would leave a second header on the screen."""
    console = _terminal()
    table = LiveTable(console=console)
    story = Story(experiment, table)
    story.begin()
    announce("Finishing the step and saving.")
    story.call("on_run_change", run=experiment.runs[0])
    assert isinstance(console.file, io.StringIO)
    seen = _screen(console.file.getvalue())
    assert [line.strip() for line in seen if "Finishing" in line] == ["Finishing the step and saving."]
    assert sum(line.split()[:2] == ["run", "overrides"] for line in seen) == 1
    table.close()
    said: list[tuple[int, bytes]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, data: said.append((descriptor, data)))
        announce("Nothing is drawn any more.")
    assert said == [(2, b"\nNothing is drawn any more.\n")]


def test_an_announcement_waits_for_the_line_that_is_being_printed(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal comes when it comes."""
    out = io.StringIO()
    screen = _Screen(file=out, force_terminal=True, width=100)

    class Slow:
        def __rich__(self) -> str:
            screen.announce("announced")
            return "printed"

    screen.print(Slow())
    assert _screen(out.getvalue())[:2] == ["printed", "announced"]


def _screen(written: str) -> list[str]:
    """Return what stands on a terminal, of the few commands that the live table gives it."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\n|\r|[^\x1b\n\r]+", written):
        if part == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif part == "\r":
            column = 0
        elif part.endswith("A"):
            row -= int(part[2:-1] or 1)
        elif part.endswith("K"):
            lines[row] = ""
        elif not part.startswith("\x1b"):
            lines[row] = lines[row][:column].ljust(column) + part + lines[row][column + len(part) :]
            column += len(part)
    return lines


def test_the_cursor_comes_back(experiment: Experiment) -> None:
    """After the end, and after an exception that nobody expected."""
    for end in ("on_experiment_end", "on_exception"):
        console = _terminal()
        assert isinstance(console.file, io.StringIO)
        story = Story(experiment, LiveTable(console=console))
        story.begin()
        assert console.file.getvalue().count("\x1b[?25l") == 1
        story.call(end, error=KeyboardInterrupt())
        assert console.file.getvalue().count("\x1b[?25h") == 1


def test_logs_do_not_redraw_the_table_without_end(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand logs a second would cost more than the training."""
    clock = [0.0]
    monkeypatch.setattr("rfflow.tracking.table.time.monotonic", lambda: clock[0])
    table = LiveTable(console=_terminal())
    drawn: list[float] = []
    draw = table._draw
    monkeypatch.setattr(table, "_draw", lambda seen: (drawn.append(clock[0]), draw(seen)))
    story = Story(experiment, table)
    story.begin()
    drawn.clear()
    for _ in range(1000):
        clock[0] += 0.001
        story.log(experiment.runs[0], {"loss": 1.0}, step=1)
    assert 3 <= len(drawn) <= 6
    story.end()


def test_ops_and_waiting_are_told(experiment: Experiment, capsys: pytest.CaptureFixture[str]) -> None:
    """What was done, and where to put the next op."""
    story = Story(experiment, LiveTable())
    story.begin()
    story.start(experiment.runs[0])
    capsys.readouterr()
    story.change(experiment.runs[0], RunState.STOPPED)
    story.call("on_wait", control=Path("outputs/sft/control").absolute(), timeout=600.0)
    assert capsys.readouterr().out == (
        "010-op.yaml: run 0 is stopped\n"
        "Every live run is stopped. Waiting for up to 10:00 for an op in outputs/sft/control\n"
    )


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.14, "3.1 s"), (59.94, "59.9 s"), (59.99, "1:00"), (125, "2:05"), (3723, "1:02:03")]
)
def test_durations_can_be_read(seconds: float, text: str) -> None:
    """Never 60.0 s."""
    assert duration(seconds) == text


def test_a_clone_shows_whose_clone_it_is(experiment: Experiment, capsys: pytest.CaptureFixture[str]) -> None:
    """The column "of" is there when a run was cloned, and only then."""
    tell_whole(experiment, LiveTable())
    assert any(run.parent is not None for run in experiment.runs)
    lines = str(ranking(experiment, 100)).splitlines()
    assert lines[3].split()[:3] == ["run", "of", "overrides"]
    clone = next(run for run in experiment.runs if run.parent is not None and run.state is not RunState.DELETED)
    assert any(line.replace("★", " ").split()[:2] == [str(clone.number), str(clone.parent)] for line in lines)
    for run in experiment.runs:
        run.parent = None
    assert str(ranking(experiment, 100)).splitlines()[3].split()[:2] == ["run", "overrides"]


def test_in_a_notebook_one_output_is_drawn_again(
    experiment: Experiment, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Instead of a line a chunk; the end is printed below it as ever."""
    shown: list[str] = []
    handle = SimpleNamespace(update=lambda content: shown.append(content))
    given: list[dict[str, object]] = []

    def display(content: str, **options: object) -> object:
        given.append(options)
        shown.append(content)
        return handle

    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(HTML=str, display=display))
    story = Story(experiment, LiveTable(refresh_seconds=0))
    story.begin()
    story.chunk(experiment.runs[0], {"loss": 2.31, "eval_loss": 2.25}, seconds=3.1)
    story.log(experiment.runs[0], {"loss": 2.0}, step=3)
    assert given == [{"display_id": True}] and len(shown) > 2
    assert shown[0].startswith("<pre") and "2.25" in shown[-1] and "lr=1e-3" in shown[-1]
    assert "chunk 1/4  run 0" not in capsys.readouterr().out
    story.end()
    assert "ranked by eval_loss" in capsys.readouterr().out
