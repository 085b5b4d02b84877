"""What an experiment's directory says, as plain values."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rfflow.checkpointing import experiment_file
from rfflow.checkpointing.experiment_file import DamagedState, SavedExperiment
from rfflow.confidential import redacted
from rfflow.control.belonging import stranger_among
from rfflow.control.items import is_op_file
from rfflow.control.ownership import living_owner
from rfflow.dashboard.changing import Cached, Lines, Stamp, open_inside, stamp_of, text_of
from rfflow.dashboard.settings import Settings, files_of_settings, read_settings
from rfflow.runs.paths import ExperimentPaths, RunPaths

_LIVE = ("queued", "running")


class Experiment:
    """One experiment's files."""

    def __init__(self, root: Path):
        self.root = root
        self.paths = ExperimentPaths(root)
        self._inside = None if _is_ours(root) else root
        """Outside of which nothing is read."""
        self._settings: Settings | None = None
        self._configured: list[Stamp | None] = []
        """How the files were of which the settings were read; an experiment that goes on may have others."""
        self._status = Cached(self.paths.control / "status.json", json.loads, self._inside)
        self._timeline = Cached(self.paths.timeline, json.loads, self._inside)
        self._saved: tuple[Any, SavedExperiment | None] = (None, None)
        self._journal = Lines(self.paths.ops, self._inside)
        self._ops: list[dict[str, Any]] = []
        self._logs: dict[int, Lines] = {}
        self._at: dict[int, Mapping[str, Any]] = {}
        """Of each run, what the status said when its log was read last."""
        self._points: list[list[Any]] = []
        self._best: dict[int, dict[str, float]] = {}
        self._runs: dict[int, RunPaths] = {}
        self._rows: dict[int, int | None] = {}
        """Rows that a run's step takes."""

    @property
    def settings(self) -> Settings:
        """What it was configured with, read once for each process that trains it."""
        if self._settings is None:
            self._settings = read_settings(self.root, self._inside)
            if self._settings.control != self.paths.control:
                self._status = Cached(self._settings.control / "status.json", json.loads, self._inside)
        return self._settings

    @property
    def control(self) -> Path:
        """Where ops go."""
        return self.settings.control

    @property
    def is_alive(self) -> bool:
        """Whether a process trains here now."""
        return living_owner(self.root) is not None

    @property
    def answers(self) -> bool:
        """Whether somebody answers ops: it trains, and the control directory is its own."""
        owner = living_owner(self.control)
        return owner is not None and Path(owner.experiment).name == self.root.name

    def status(self) -> dict[str, Any]:
        """Return ``status.json``; empty where there is none."""
        return (self.settings and self._status.get()) or {}

    def version(self) -> str:
        """Return what changes when :meth:`state` does."""
        configured = [stamp_of(path) for path in files_of_settings(self.root)]
        if configured != self._configured:
            self._settings, self._configured = None, configured
        files = (self._status.path, self._timeline.path, self.paths.ops, self.control)
        return f"{[stamp_of(path) for path in files]}{self.is_alive}{self.answers}"

    # --- all of it ----------------------------------------------------------------------------------------------------

    def state(self, ops: int = 0, chunks: tuple[int, float] = (0, 0.0)) -> dict[str, Any]:
        """Return the runs as they stand, the ops and the timeline (``[run, chunk, started, ended, slot]``).

        Args:
            ops: how many ops are known already: of those that are, none is returned.
            chunks: how many chunks are known already, and when the last of them ended. A run that goes on from an
                earlier checkpoint takes some back; then all are returned.
        """
        status, settings = self.status(), self.settings
        self._read_logs()
        self._ops += [{**op, "detail": redacted(str(op.get("detail", "")))} for op in self._journal.new()]
        timeline = (self._timeline.get() or {}).get("chunks", [])
        known, ended = chunks
        known = known if 0 < known <= len(timeline) and timeline[known - 1]["ended"] == ended else 0
        runs = _timed(status.get("runs") or [], timeline)
        standing = settings.objective.standing(run.get("metrics") or {} for run in runs)
        places = [run.get("rank") for run in runs]
        if None in places:  # an older experiment's
            ranked = sorted(runs, key=lambda run: (*settings.objective.sort_key(_numbers(run)), run["number"]))
        else:
            ranked = sorted(runs, key=lambda run: run["rank"])
        for rank, run in enumerate((run for run in ranked if run["state"] != "deleted"), 1):
            run["rank"] = rank
        for run in runs:
            run["rows"] = self._rows_a_step(run["number"])
            run["best"] = self._best.get(run["number"], {})
        return {
            "experiment": str(self.root),
            "alive": self.is_alive,
            "waiting": bool(status.get("waiting")),
            "updated": status.get("updated"),
            "objective": {"metric": standing.metric, "direction": standing.direction},
            "policy": settings.policy,
            "no_ops": self.why_no_ops(),
            "hint": self._hint(runs, waiting=bool(status.get("waiting"))),
            "runs": runs,
            "ops": self._ops[max(ops, 0) :],
            "ops_from": min(max(ops, 0), len(self._ops)),
            "pending": list(self._pending()),
            "timeline": [[c["run"], c["chunk"], c["started"], c["ended"], c.get("slot", 0)] for c in timeline[known:]],
            "timeline_from": known,
        }

    def why_no_ops(self) -> str | None:
        """Return why nobody would answer an op now, and what can be done; None where somebody does."""
        if self.answers:
            return None
        if self.is_alive:
            return "This experiment takes no ops: it was started with control.enabled=false."
        runs = self.status().get("runs") or []
        if not runs or any(run["state"] in (*_LIVE, "stopped") for run in runs):
            return (
                "No process trains here, so nobody would answer an op. To go on with it, type "
                f"rfflow resume={self.root}"
            )
        return f"The experiment is over: every run has ended. To clone one, open it again: rfflow resume={self.root}"

    def _hint(self, runs: list[dict[str, Any]], *, waiting: bool) -> str:
        if not self.answers:
            return ""
        if waiting:
            limit = self.settings.idle_timeout
            until = "for as long as it takes" if limit is None else f"{limit:g} s (control.idle_timeout), and then ends"
            return f"Nothing can train: it waits for an op {until}. Resume a run, or clone one."
        if self.settings.policy:
            return f"{self.settings.policy} issues ops too; those of people are taken first."
        return ""

    def _pending(self) -> Iterator[dict[str, str]]:
        try:
            names = sorted(name for name in os.listdir(self.control) if is_op_file(name))
        except OSError:
            return
        for name in names:
            try:
                yield {"file": name, "text": redacted(text_of(self.control / name, self._inside)[:500])}
            except (OSError, ValueError):
                continue

    def _rows_a_step(self, number: int) -> int | None:
        """Return how many rows a step of a run takes; None where its configuration does not say it."""
        if number not in self._rows:
            saved = self.saved()
            for record in () if saved is None else saved.runs:
                if record.number not in self._rows:
                    self._rows[record.number] = _rows_of(json.loads(record.config))
        return self._rows.get(number)

    def points(self, since: int, names: Sequence[str]) -> dict[str, Any]:
        """Return the points that came after a cursor, and the new cursor.

        A point is ``[run, step, chunk, seconds since the epoch, the value of each name, or None]``.
        """
        self._read_logs()
        points = []
        for *where, metrics in self._points[max(since, 0) :]:
            values = [metrics.get(name) for name in names]
            if any(value is not None for value in values):
                points.append([*where, *values])
        return {"points": points, "cursor": len(self._points)}

    def _read_logs(self) -> None:
        for run in self.status().get("runs") or []:
            number = run["number"]
            if number in self._logs and run["state"] != "running" and self._at.get(number) is run:
                continue  # it has logged nothing since
            self._at[number] = run
            if number not in self._logs:
                self._logs[number] = Lines(self.run(number).metrics, self._inside)
            best = self._best.setdefault(number, {})
            for line in self._logs[number].new():
                metrics = {k: v for k, v in (line.get("metrics") or {}).items() if isinstance(v, int | float)}
                self._points.append([number, line.get("step"), line.get("chunk"), line.get("time"), metrics])
                for name, value in metrics.items():
                    better = max if self._is_high_good(name) else min
                    best[name] = better(best.get(name, value), value)

    def _is_high_good(self, name: str) -> bool:
        objective = self.settings.objective
        if name == objective.metric:
            return objective.direction == "maximize"
        return not name.endswith(("loss", "perplexity", "error", "grad_norm", "entropy", "runtime"))

    # --- one run ------------------------------------------------------------------------------------------------------

    def run(self, number: int) -> RunPaths:
        """Return where a run keeps its files.

        Raises:
            KeyError: if there is no run of that number.
        """
        if number not in self._runs:
            if all(run["number"] != number for run in self.status().get("runs") or []):
                raise KeyError(number)
            saved = self.saved()
            for record in () if saved is None else saved.runs:
                self._runs[record.number] = RunPaths(record.path(self.root))
            if number not in self._runs:  # experiment.json does not have it yet, or there is none
                return self.paths.run(number)
        return self._runs[number]

    def saved(self) -> SavedExperiment | None:
        """Return ``experiment.json``; None where there is none that can be read."""
        stamp = stamp_of(self.paths.state)
        if stamp != self._saved[0]:
            try:
                with open_inside(self.paths.state, self._inside):
                    self._saved = (stamp, experiment_file.read(self.paths.state))
            except (OSError, DamagedState):
                self._saved = (stamp, None)
        return self._saved[1]

    def config(self, number: int) -> dict[str, Any]:
        """Return a run's resolved configuration as it may be shown, less what all runs share."""
        paths, saved = self.run(number), self.saved()
        if (record := saved and saved.run(number)) and record.config != "{}":
            return dict(json.loads(record.config))
        try:
            text = redacted(text_of(paths.root / ".hydra" / "config.yaml", self._inside))
            document = yaml.safe_load(text)
        except (OSError, ValueError, yaml.YAMLError):
            return {}
        return document if isinstance(document, dict) else {}

    def log_tail(self, number: int, size: int = 20_000) -> str:
        """Return the end of a run's ``run.log``, ``size`` bytes at most; empty where there is none."""
        try:
            with open_inside(self.run(number).log, self._inside) as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - size))
                return redacted(file.read().decode("utf-8", "replace"))
        except OSError:
            return ""

    def generations(self, number: int, limit: int = 500) -> list[dict[str, Any]]:
        """Return what a run has answered, the last ``limit`` lines of it."""
        return Lines(self.run(number).generations, self._inside).new()[-limit:]


def _is_ours(root: Path) -> bool:
    try:
        return stranger_among(root, ()) is None
    except OSError:
        return False


def _rows_of(config: Any) -> int | None:
    trainer = config.get("trainer")
    args = trainer.get("args") if isinstance(trainer, dict) else None
    if not isinstance(args, dict):
        return None
    rows, steps = args.get("per_device_train_batch_size", 8), args.get("gradient_accumulation_steps", 1)
    return rows * steps if isinstance(rows, int) and isinstance(steps, int) else None


def _numbers(run: Mapping[str, Any]) -> dict[str, float]:
    """Return a run's metrics; JSON has NaN as a word."""
    return {key: float(value) for key, value in (run.get("metrics") or {}).items()}


def _timed(runs: list[dict[str, Any]], chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the runs with the seconds that each has trained, and those that are left by the pace so far."""
    seconds: dict[int, float] = {}
    steps: dict[int, int] = {}
    for chunk in chunks:
        seconds[chunk["run"]] = seconds.get(chunk["run"], 0.0) + chunk["ended"] - chunk["started"]
        steps[chunk["run"]] = chunk["step"]
    rates = {number: seconds[number] / step for number, step in steps.items() if step}
    average = sum(rates.values()) / len(rates) if rates else None
    timed = []
    for run in runs:
        rate, left = rates.get(run["number"], average), None
        if rate is not None and run.get("steps") and run["state"] in _LIVE:
            left = rate * (run["steps"] - run["step"])
        timed.append({**run, "seconds": seconds.get(run["number"], 0.0), "left": left})
    return timed
