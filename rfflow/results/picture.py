"""The curves of a metric over the runs of several experiments. Imports matplotlib."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rfflow.config.spec import Objective
from rfflow.errors import ConfigError
from rfflow.results.compare import Entry, labels_of
from rfflow.tracking.gantt import INK
from rfflow.tracking.reading import read_points

_FORMATS = (".png", ".svg", ".pdf")
_NAMED = 12
"""Runs that are named beside the picture; the best ones."""


def draw(entries: Sequence[Entry], objective: Objective, picture: Path) -> None:
    """Draw the curves, best first: a colour an experiment, the best run of all thick.

    Raises:
        ConfigError: if the picture cannot be written, or no run has logged the metric.
    """
    if picture.suffix.lower() not in _FORMATS:
        raise ConfigError(f"--picture {picture} is no picture that can be drawn. Allowed: {', '.join(_FORMATS)}.")
    curves = [read_points(entry.run.paths.metrics, objective.metric) for entry in entries]
    if not any(curves):
        raise ConfigError(f"--picture: no run has logged {objective.metric} into its metrics.jsonl.")
    has_epochs = all(epoch is not None for curve in curves for _, epoch, _ in curve)
    experiments = list(dict.fromkeys(entry.experiment for entry in entries))
    figure = Figure(figsize=(9, 5), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)  # no pyplot: it would keep the figure for the whole process
    axes = figure.add_subplot()
    names = labels_of(entries, 40)
    for place, (entry, curve) in reversed(list(enumerate(zip(entries, curves, strict=True)))):
        points = [
            (float(step if epoch is None or not has_epochs else epoch), value)
            for step, epoch, value in curve
            if math.isfinite(value)
        ]
        if not points:
            continue
        axes.plot(
            [x for x, _ in points],
            [y for _, y in points],
            color=colormaps["tab10"](experiments.index(entry.experiment) % 10),
            linewidth=2.4 if place == 0 else 1.2,
            alpha=1 if place == 0 else 0.65,
            marker="o" if len(points) < 30 else None,
            markersize=3,
            zorder=len(entries) - place + 2,
            label=f"{entry.experiment} {entry.run.number}  {names[place]}" if place < _NAMED else None,
        )
    axes.set_xlabel("epoch" if has_epochs else "step", fontsize=9, color=INK)
    axes.set_ylabel(objective.metric, fontsize=9, color=INK)
    axes.tick_params(labelsize=9, colors=INK)
    axes.grid(color="#e5e5e5", linewidth=0.8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    handles, texts = axes.get_legend_handles_labels()
    if len(entries) > _NAMED:
        axes.set_title(f"The best {_NAMED} of {len(entries)} are named", loc="left", fontsize=9, color=INK)
    axes.legend(handles[::-1], texts[::-1], fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    aside = picture.with_name(f".{picture.name}.new")
    try:
        picture.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(aside, format=picture.suffix.lower()[1:])
        os.replace(aside, picture)
    except OSError as error:
        raise ConfigError(f"--picture {picture} cannot be written: {error}") from error
    finally:
        aside.unlink(missing_ok=True)
