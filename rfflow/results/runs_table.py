"""In Python and notebooks: an experiment's runs as a DataFrame, with their models and curves.

``rfflow.open("outputs/...")`` returns it at any time, and ``rfflow.sweep`` at its end.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas  # type: ignore[import-untyped,unused-ignore]

from rfflow.errors import ConfigError, nearest
from rfflow.results.finished import finished
from rfflow.results.opened import Opened, chosen_run, open_experiment
from rfflow.runs.paths import ExperimentPaths
from rfflow.tracking.layout import standings
from rfflow.tracking.reading import read_steps


def open(directory: Path | str) -> RunsTable:
    """Return the runs of an experiment on disk, whether it goes on elsewhere or is over.

    Raises:
        ConfigError: if there is none.
    """
    open_experiment(directory)  # says what is wrong with it
    return table_of(Path(directory).expanduser())


def table_of(root: Path) -> RunsTable:
    """Return what ``runs.csv`` and every run's ``metrics.jsonl`` hold."""
    paths = ExperimentPaths(root)
    try:
        table = RunsTable(pandas.read_csv(paths.runs_table, dtype={"directory": str}, keep_default_na=True))
    except FileNotFoundError as error:
        raise ConfigError(f"{root} has no runs.csv yet: none of its runs has begun.") from error
    places = [paths.found(*row) for row in zip(table["run"], table["directory"].fillna(""), strict=True)]
    histories = [pandas.DataFrame(read_steps(place.metrics)) for place in places]
    table["metrics"] = pandas.Series(histories, index=table.index, dtype=object)
    table.attrs["dir"] = str(root.absolute())
    return table


class RunsTable(pandas.DataFrame):
    """A row a run: the columns of ``runs.csv``, and ``metrics``, a DataFrame with what the run logged by ``step``.

    ``attrs["dir"]`` is the experiment's directory, which is read again whenever it is asked. What is chosen from the
    table as rows (``table[table["lr"] > 1e-4]``) is such a table too.
    """

    @property
    def _constructor(self) -> Callable[..., pandas.DataFrame]:
        return RunsTable

    @property
    def best(self) -> pandas.Series:
        """The row of the best run in this table, as the ranking has it.

        Raises:
            ConfigError: if none has the objective's metric.
        """
        opened = self._opened()
        objective = opened.experiment.spec.objective.standing(run.metrics for run in opened.experiment.runs)
        there = set(self["run"])
        for run in standings(opened.experiment):
            if run.number in there and objective.value(run.metrics) is not None:
                return self[self["run"] == run.number].iloc[0]
        raise ConfigError(f"No run of {opened.root} has {objective.metric} yet, so there is no best one.")

    def load(self, run: int | None = None, *, base: str | None = None, accelerator: str = "auto") -> Any:
        """Return the model of a run: a ``PeftModel``, or a whole model where every weight was trained.

        It has a base of its own, on the device and in evaluation mode: train it, merge it, throw it away.

        Args:
            run: its number; by default the best one that has completed.
            base: where its base model is now, if that has moved.
            accelerator: as Lightning Fabric names it.

        Raises:
            ConfigError: if it has left no model, or its base is gone or is another one now.
        """
        opened = self._opened()
        found = finished(opened, chosen_run(opened, run), base)
        from rfflow.worker.finished.alone import load_alone  # not before: it takes torch some seconds

        return load_alone(found, accelerator)

    def tokenizer(self, run: int | None = None) -> Any:
        """Return the tokenizer that a run left beside its model; by default the best one's that has completed."""
        opened = self._opened()
        found = finished(opened, chosen_run(opened, run))
        from rfflow.worker.finished.loading import tokenizer_of

        return tokenizer_of(found)

    def curves(self, metric: str | None = None) -> pandas.DataFrame:
        """Return what the runs of this table logged.

        Args:
            metric: one of them, such as ``eval_loss``: a row a step, a column a run, as ``.plot()`` draws it. Runs
                that have no such step are filled in between their neighbours, not beyond their ends. By default all:
                a row a step of a run, with columns ``run``, ``step``, ``chunk`` and one a metric.

        Raises:
            ConfigError: if no run has logged that metric.
        """
        parts = [history.assign(run=run) for run, history in zip(self["run"], self["metrics"], strict=True)]
        parts = [part for part in parts if len(part)]
        if not parts:
            raise ConfigError("None of these runs has logged anything yet.")
        all_steps = pandas.concat(parts, ignore_index=True)
        names = [name for name in all_steps.columns if name not in ("run", "step", "chunk")]
        if metric is None:
            return all_steps[["run", "step", "chunk", *names]]
        if metric not in names:
            raise ConfigError(f"No run has logged {metric!r}.{nearest(metric, names)} There are: {', '.join(names)}.")
        logged = all_steps.dropna(subset=[metric]).astype({metric: float})
        wide = logged.pivot(index="step", columns="run", values=metric)
        return wide.interpolate("index", limit_area="inside")

    def _opened(self) -> Opened:
        return open_experiment(self.attrs["dir"])
