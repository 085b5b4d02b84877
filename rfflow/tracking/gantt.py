"""The picture of a timeline: one row a run, one bar a chunk, and a row a device where there are several.

Imports matplotlib.

Draw an old one again with ``draw(read(path), picture)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MultipleLocator

from rfflow.tracking.labels import label_parts, unnamed
from rfflow.tracking.layout import rough

INK = "#333333"
WIDTH = 11
"""Inches; some 60 points of each go to bars."""
_PAUSE = 60.0
"""Seconds in which nobody trains that are drawn in any case."""
NICE_SECONDS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400)


def draw(timeline: Mapping[str, Any], picture: Path) -> None:
    """Draw a timeline, as ``timeline.json`` holds it, into a PNG file."""
    runs = timeline["runs"]
    chunks, pauses = closed_up(timeline["chunks"])
    rows = {run["run"]: row for row, run in enumerate(runs)}
    slots = sorted({chunk.get("slot", 0) for chunk in chunks})
    lanes = {slot: len(rows) + 0.4 + lane for lane, slot in enumerate(slots)} if len(slots) > 1 else {}
    start = min(chunk["started"] for chunk in chunks)
    end = max(max(chunk["ended"] for chunk in chunks), start + 1e-3)
    # No pyplot: it would pick a backend and keep the figure for the whole process.
    height = 1.5 + (0.34 if len(rows) < 20 else 0.24) * max(2, len(rows) + len(lanes))
    figure = Figure(figsize=(WIDTH, height), dpi=130, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xlim(0, end - start)
    axes.set_ylim(len(rows) + len(lanes) - (0.0 if lanes else 0.4), -0.6)
    # A white seam parts a run's bars where they touch; on bars a few points wide it would be all one sees.
    seam = 0.6 if WIDTH * 60 / len(chunks) > 5 else 0.0
    for number, row in rows.items():
        mine = [chunk for chunk in chunks if chunk["run"] == number]
        _draw_row(axes, row, mine, start, _color(row, len(rows)), seam)
        for slot, lane in lanes.items():
            here = [chunk for chunk in mine if chunk.get("slot", 0) == slot]
            _draw_row(axes, lane, here, start, _color(row, len(rows)), seam)
    _dress(axes, runs, end - start, lanes)
    axes.set_title(_title(timeline, end - start), loc="left", fontsize=11, color=INK)
    if any(chunk["evaluation"] for chunk in chunks):
        patches = [Patch(color="#777777", label="training"), Patch(color="#cccccc", label="evaluation")]
        axes.legend(
            handles=patches, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, fontsize=9, borderpad=0
        )
    for moment, seconds in pauses:
        axes.axvline(moment - start, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.annotate(
            f"{rough(seconds)} later",
            (moment - start, 1),
            xycoords=("data", "axes fraction"),
            xytext=(3, 2),
            textcoords="offset points",
            fontsize=8,
            color=INK,
        )
    canvas.draw()  # settles the layout: only now is it known which numbers fit
    _number_bars(axes, rows, chunks, start)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture)


def closed_up(chunks: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], list[tuple[float, float]]]:
    """Leave out the time in which nobody trained for long: an experiment may go on days later.

    Returns:
        The chunks, later ones moved to the left; and where that was, with how many seconds.
    """
    ordered = sorted(chunks, key=lambda chunk: chunk["started"])
    busy = sum(chunk["ended"] - chunk["started"] for chunk in ordered)
    long, left = max(_PAUSE, 0.2 * busy), 0.02 * busy
    moved: list[Mapping[str, Any]] = []
    pauses: list[tuple[float, float]] = []
    shift, until = 0.0, ordered[0]["started"] if ordered else 0.0
    for chunk in ordered:
        if (gap := chunk["started"] - until) > long:
            shift += gap - left
            pauses.append((chunk["started"] - shift - left / 2, gap))
        until = max(until, chunk["ended"])
        moved.append({**chunk, "started": chunk["started"] - shift, "ended": chunk["ended"] - shift})
    return moved, pauses


def _draw_row(
    axes: Axes, row: float, chunks: Sequence[Mapping[str, Any]], start: float, color: Any, seam: float
) -> None:
    if not chunks:
        return
    spans = [(chunk["started"] - start, chunk["ended"] - chunk["started"]) for chunk in chunks]
    pale = [1 - (1 - part) * 0.4 for part in color[:3]]
    axes.broken_barh(spans, (row - 0.38, 0.76), facecolors=color, edgecolor="white", linewidth=seam)
    evaluations = [
        (chunk["ended"] - start - min(chunk["evaluation"], length), min(chunk["evaluation"], length))
        for chunk, (_, length) in zip(chunks, spans, strict=True)
        if chunk["evaluation"]
    ]
    if evaluations:
        axes.broken_barh(evaluations, (row - 0.38, 0.76), facecolors=pale, edgecolor="white", linewidth=seam)


def _dress(axes: Axes, runs: Sequence[Mapping[str, Any]], seconds: float, lanes: Mapping[int, float]) -> None:
    names = label_parts({run["run"]: tuple(run["overrides"]) for run in runs}, width=30)
    texts = [
        f"{names[run['run']] or unnamed(run['parent'])}   {run['run']}" if len(runs) > 1 else str(run["run"])
        for run in runs
    ]
    places = [*map(float, range(len(runs))), *lanes.values()]
    texts += [f"slot {slot}" for slot in lanes]
    axes.set_yticks(places, texts, fontsize=9 if len(runs) < 20 else 8, color=INK)
    step = next((nice for nice in NICE_SECONDS if seconds / nice <= 10), NICE_SECONDS[-1])
    axes.xaxis.set_major_locator(MultipleLocator(step))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _clock(value, seconds)))
    axes.set_xlabel("time " + _unit(seconds), fontsize=9, color=INK)
    axes.tick_params(axis="x", labelsize=9, colors=INK)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#bbbbbb")


def _number_bars(axes: Axes, rows: Mapping[int, int], chunks: Sequence[Mapping[str, Any]], start: float) -> None:
    """Write the chunk's number into every bar that has the room."""
    left, right = axes.get_xlim()
    points = axes.bbox.width / (right - left) * 72 / axes.figure.dpi  # points a second
    for chunk in chunks:
        text = str(chunk["chunk"])
        training = chunk["ended"] - chunk["started"] - (chunk["evaluation"] or 0)
        if training * points < 6 * len(text) + 3:
            continue
        axes.text(
            chunk["started"] - start + training / 2,
            rows[chunk["run"]],
            text,
            ha="center",
            va="center_baseline",
            fontsize=8,
            color="white",
        )


def _title(timeline: Mapping[str, Any], seconds: float) -> str:
    chunks = timeline["chunks"]
    held = sum(chunk["ended"] - chunk["started"] for chunk in chunks)
    switch = sum(chunk["switch"] for chunk in chunks)
    runs = len(timeline["runs"])
    title = f"{timeline['experiment']}: {runs} run{'s' if runs > 1 else ''} in {spoken(seconds)}"
    slots = len({chunk.get("slot", 0) for chunk in chunks})
    if slots > 1:
        title += f" on {slots} devices, {1 - held / (slots * seconds):.0%} idle"
    return f"{title}, {switch / held:.2%} of it in switches" if held and switch else title


def spoken(seconds: float) -> str:
    """Return a length of time in words, two units at most."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _clock(value: float, seconds: float) -> str:
    if seconds < 120:
        return f"{value:g}"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes}:{rest:02d}" if seconds < 7200 else f"{minutes // 60}:{minutes % 60:02d}"


def _unit(seconds: float) -> str:
    return "(s)" if seconds < 120 else "(min:s)" if seconds < 7200 else "(h:min)"


def _color(row: int, rows: int) -> Any:
    return colormaps["tab10"](row) if rows <= 10 else colormaps["turbo"](0.05 + 0.9 * row / (rows - 1))
