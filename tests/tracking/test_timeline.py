"""timeline.json and its picture."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from rfflow.tracking import gantt, timeline
from rfflow.tracking.gantt import draw
from rfflow.tracking.timeline import Timeline, read
from tests.tracking.story import EPOCH, FOUR, Story, make_experiment, tell_whole


def test_it_says_who_held_the_device_when(tmp_path: Path) -> None:
    """Chunk by chunk, with the time that went to evaluation and to the switch."""
    experiment = make_experiment(tmp_path, ("lr=1",), ("lr=2",))
    first, second = experiment.runs
    story = Story(experiment, Timeline(share=1.0))
    story.begin()
    story.chunk(first, {"loss": 1.0, "eval_loss": 1.0, "eval_runtime": 0.75})
    story.chunk(second, {"loss": 1.0})
    found = read(experiment.paths.timeline)
    assert found["version"] == 1 and found["experiment"] == "sft" and found["started"] == EPOCH
    assert [(run["run"], run["overrides"]) for run in found["runs"]] == [(0, ["lr=1"]), (1, ["lr=2"])]
    assert found["chunks"] == [
        {
            "run": 0,
            "chunk": 1,
            "step": 2,
            "started": EPOCH,
            "ended": EPOCH + 3,
            "switch": 0.002,
            "evaluation": 0.75,
            "slot": 0,
        },
        {
            "run": 1,
            "chunk": 1,
            "step": 2,
            "started": EPOCH + 3,
            "ended": EPOCH + 6,
            "switch": 0.002,
            "evaluation": None,
            "slot": 0,
        },
    ]


def test_it_is_current_at_every_turn(tmp_path: Path) -> None:
    """A failed run's chunks and a clone's among them."""
    experiment = make_experiment(tmp_path, *FOUR)
    for _ in Story(experiment, Timeline(share=1.0)).tell():
        found = read(experiment.paths.timeline)
        assert len(found["chunks"]) == sum(len(run.chunks) for run in experiment.runs)
        assert len(found["runs"]) == len(experiment.runs)


def test_writing_takes_no_more_than_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of chunks cost a bounded part of the time: boundaries are skipped, the end is not."""
    clock = [100.0]
    written: list[float] = []

    def slow(path: Path, text: str) -> None:
        written.append(clock[0])
        clock[0] += 0.01
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    monkeypatch.setattr(timeline, "replace_text", slow)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    experiment = make_experiment(tmp_path, *[(f"lr={n}",) for n in range(50)])
    story = Story(experiment, Timeline(picture=False, share=0.01))
    story.begin()
    for run in experiment.runs:
        for _ in range(4):
            clock[0] += 0.5
            story.chunk(run)
    assert 0.005 < len(written) * 0.01 / (clock[0] - 100) <= 0.015
    story.end()
    assert len(json.loads(experiment.paths.timeline.read_text())["chunks"]) == 200


def test_the_picture_shows_every_run_in_its_color(tmp_path: Path) -> None:
    """Drawn at the end; a row a run."""
    experiment = make_experiment(tmp_path, *FOUR)
    tell_whole(experiment, Timeline())
    pixels = imread(experiment.paths.timeline_picture)[..., :3]
    for color in [(0.122, 0.467, 0.706), (1.0, 0.498, 0.055), (0.173, 0.627, 0.173), (0.839, 0.153, 0.157)]:
        assert (abs(pixels - color).max(axis=-1) < 0.01).sum() > 1000


def test_several_devices_have_a_row_each(tmp_path: Path) -> None:
    """Below the runs, in the runs' colors, so that one sees who held which device, and when it was idle."""

    def picture(slots: int) -> Any:
        chunks = [
            {"run": n, "chunk": 1, "step": 1, "started": EPOCH, "ended": EPOCH + 9, "switch": 0.0, "evaluation": None}
            | {"slot": n % slots}
            for n in range(2)
        ]
        runs = [{"run": n, "parent": None, "overrides": [f"lr={n}"]} for n in range(2)]
        draw({"experiment": "sft", "runs": runs, "chunks": chunks}, tmp_path / "x.png")
        return imread(tmp_path / "x.png")[..., :3]

    def rows_in(pixels: Any, color: tuple[float, float, float]) -> int:
        """Count the bands of pixel rows that are mostly of one color."""
        inside = (abs(pixels - color).max(axis=-1) < 0.01).mean(axis=1) > 0.3
        return int((inside[1:] & ~inside[:-1]).sum())

    blue = (0.122, 0.467, 0.706)
    assert rows_in(picture(1), blue) == 1 and rows_in(picture(2), blue) == 2


def test_drawing_says_nothing_of_fonts_and_caches(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first experiment would end with matplotlib's notes to itself."""
    fonts = logging.getLogger("matplotlib.font_manager")
    monkeypatch.setattr(gantt, "draw", lambda *_: fonts.info("generated new fontManager"))
    with caplog.at_level(logging.INFO):
        tell_whole(make_experiment(tmp_path, *FOUR), Timeline())
        assert not caplog.records
        fonts.info("others may say it")
    assert caplog.messages == ["others may say it"]


@pytest.mark.parametrize("runs", [1, 32])
def test_any_number_of_runs_can_be_drawn(tmp_path: Path, runs: int) -> None:
    """Including chunks so short that the clock has not moved."""
    chunks = [
        {
            "run": n,
            "chunk": 1,
            "step": 1,
            "started": EPOCH,
            "ended": EPOCH,
            "switch": 0.0,
            "evaluation": None,
            "slot": 0,
        }
        for n in range(runs)
    ]
    rows = [{"run": n, "parent": None, "overrides": [f"peft.r={n}"]} for n in range(runs)]
    draw({"experiment": "sft", "runs": rows, "chunks": chunks}, tmp_path / "timeline.png")
    height, width, _ = imread(tmp_path / "timeline.png").shape
    assert width > 1000 and height > (1000 if runs == 32 else 200)


def test_without_matplotlib_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A picture is not worth an experiment."""
    monkeypatch.setitem(__import__("sys").modules, "rfflow.tracking.gantt", None)
    experiment = make_experiment(tmp_path, *FOUR)
    tell_whole(experiment, Timeline())
    assert experiment.paths.timeline.exists() and not experiment.paths.timeline_picture.exists()
    assert "timeline.png was not drawn" in caplog.text


def test_days_without_training_are_left_out_of_the_picture(tmp_path: Path) -> None:
    """An experiment may be opened again a week later, and its bars would be a point wide."""
    spans = [(0, 10), (10, 20), (604_820, 604_830)]
    chunks = [{"run": 0, "started": 100.0 + a, "ended": 100.0 + b, "evaluation": 0, "chunk": 1} for a, b in spans]
    moved, pauses = gantt.closed_up(chunks)
    assert [(chunk["started"], chunk["ended"]) for chunk in moved] == [
        (100, 110),
        (110, 120),
        (pytest.approx(120.6), pytest.approx(130.6)),
    ]
    assert pauses == [(pytest.approx(120.3), 604_800)]
    assert gantt.closed_up(chunks[:2]) == (chunks[:2], [])
