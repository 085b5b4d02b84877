"""TensorBoard: one directory a run, an HParams table over all of them and a page that overlays their curves."""

from __future__ import annotations

import re
import shutil
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from operator import methodcaller
from pathlib import Path
from typing import Any

import yaml
from lightning_fabric.loggers import Logger
from tensorboard.compat.proto.summary_pb2 import Summary

from rfflow.config.spec import Objective
from rfflow.loggers import hparams
from rfflow.loggers.event_files import CurvesWriter
from rfflow.loggers.events import BY_CHUNK, STATE, Said, read_said
from rfflow.runs.chunks import Answer, ChunkResult
from rfflow.runs.experiment import Experiment
from rfflow.runs.run import Run, RunState
from rfflow.tracking.labels import directory_name, metric_tag

SHARED = "experiment"
"""The directory that holds what belongs to no run is called so; those that follow it have a number behind."""
OF_EVERY_RUN = ("chunk", STATE)
"""Tags that every run has from the start."""


class TensorBoardLogger(Logger):
    """Write every run's curves below ``tb/<run> <overrides>/``, and what TensorBoard needs to compare them.

    Every metric is there twice: by the optimizer's step, and as ``by_chunk/...`` by the chunk that it was known at the
    end of, the chunks of its ancestors counted in where a clone started warm; there runs of different batch sizes have
    seen the same data at the same place.

    It is a Fabric logger, which takes metrics named ``<run>/<tag>``, and a callback, which learns from the experiment's
    events where to write and what the runs are. An error of the writer (a full disk, say) comes out at the next call.

    The HParams table has a row for every run from the start. TensorBoard shows a run's status as unknown until it has
    ended: it never looks at a second status, so "running" would stay for good.

    Args:
        flush_secs: how long a value may wait in memory during a chunk; each chunk's end writes everything.
        max_queue: how many values may wait before one has to be written.
    """

    def __init__(self, flush_secs: int = 10, max_queue: int = 100):
        self._flush_secs = flush_secs
        self._max_queue = max_queue
        self._experiment: Experiment | None = None
        self._runs: dict[str, Run] = {}
        """Runs that have a row in the HParams table, by name."""
        self._writers: dict[str, CurvesWriter] = {}
        self._removed: set[str] = set()
        self._metrics: dict[str, None] = {}
        """Tags of all runs, as an ordered set."""
        self._shared_number = 0
        self._shared_of: set[tuple[str, str]] = set()
        """The runs and tags that the record there was made of."""
        self._shared_record = b""
        self._shared_texts = 0
        self._said: dict[str, Said] = {}
        """What another process has written of runs that go on, by name."""

    # --- Fabric logger ------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str | None:
        """Return the experiment's name, once it is known."""
        return self._experiment.spec.name if self._experiment else None

    @property
    def version(self) -> int | str | None:
        """Return nothing: an experiment has its own directory."""
        return None

    @property
    def root_dir(self) -> str | None:
        """Return the directory to give to ``tensorboard --logdir``."""
        return str(self._experiment.paths.tensorboard) if self._experiment else None

    @property
    def log_dir(self) -> str | None:
        """Return the same: below it lies one directory a run."""
        return self.root_dir

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write scalars named ``<run>/<tag>``; names that begin with no run go to the log directory itself."""
        for key, value in metrics.items():
            name, _, tag = key.partition("/")
            if name in self._removed:
                continue
            if name in self._runs:
                if step != 0:  # of the untrained model; as a column it would be compared with what others have learnt
                    self._metrics.setdefault(tag)
                self._writer(name).add_scalar(tag, value, self._runs[name].step if step is None else step)
            else:
                self._writer("").add_scalar(key, value, step)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the runs' configurations are read from their specs."""

    def save(self) -> None:
        """Write what waits in memory."""
        _each(list(self._writers.values()), methodcaller("flush"))

    def finalize(self, status: str) -> None:
        """Add the picture of the timeline, where one was drawn, and close the files."""
        picture = self._experiment.paths.timeline_picture if self._experiment else None
        if status == "success" and picture is not None and picture.is_file():
            self._write(self._shared_writer(), _image("timeline", picture.read_bytes()), self._shared_texts)
        self._close()

    # --- events -------------------------------------------------------------------------------------------------------

    def on_experiment_start(self, experiment: Experiment) -> None:
        """Give every run its directory and its row."""
        self._experiment = experiment
        # Left by an earlier start, in this process or another; a TensorBoard that is running has read them.
        self._shared_of, self._shared_record = set(), b""
        for old in sorted(experiment.paths.tensorboard.glob(f"{SHARED}*")):
            self._shared_number = max(self._shared_number, int(re.sub(r"\D", "", old.name) or 1))
            shutil.rmtree(old)
        for run in experiment.runs:  # of an experiment that goes on: what they have logged keeps its columns
            self._metrics |= dict.fromkeys(metric_tag(name) for chunk in run.chunks for name in chunk.metrics)
        self._add_runs(experiment)
        self._write_shared(experiment)

    def on_run_start(self, experiment: Experiment, run: Run) -> None:
        """Take in the runs that were added since, and show that this one runs."""
        self._add_runs(experiment)
        self._write_state(run)
        self._write_shared(experiment)

    def on_chunk_end(self, experiment: Experiment, run: Run, result: ChunkResult) -> None:
        """Write the chunk's number (from 1) and let everything be seen."""
        self._add_runs(experiment)
        if run.name in self._writers:
            self._writers[run.name].add_scalar("chunk", result.chunk + 1, result.step)
            self._write_by_chunk(run, result)
            for number, answer in enumerate(result.answers):
                self._writers[run.name].add_text(f"answers/{number}", _as_text(answer), result.step)
            self._writers[run.name].flush()
        self._write_shared(experiment)

    def on_run_end(self, experiment: Experiment, run: Run) -> None:
        """Write how the run ended; its last values follow through the logger, if any."""
        self._add_runs(experiment)
        if run.name in self._writers:
            self._write_state(run)
            self._write(self._writers[run.name], hparams.end_record(run, time.time()))
        self._write_text(experiment)

    def on_run_change(self, experiment: Experiment, run: Run) -> None:
        """Take in a clone, or take a deleted run out."""
        if run.state is RunState.DELETED:
            self.remove(run)
        self._add_runs(experiment)
        self._write_state(run)
        self._write_shared(experiment)
        self._write_text(experiment)

    def on_op(self, experiment: Experiment, run: Run, text: str) -> None:
        """Write what an op did as text of its run; of a clone, both the parent and the clone hear."""
        self._add_runs(experiment)
        if run.name in self._writers:
            self._writers[run.name].add_text("ops", text, run.step)
            self._writers[run.name].flush()

    def on_experiment_end(self, experiment: Experiment) -> None:
        """Close all files."""
        self._write_shared(experiment)
        self._write_text(experiment)
        self._close()

    def on_exception(self) -> None:
        """Close all files of an experiment that ends before its time."""
        # The error that ends the experiment is the news, not a second one from a full disk.
        with suppress(OSError):
            self._close()

    def remove(self, run: Run) -> None:
        """Take a run's curves and its row out of TensorBoard, by deleting its directory."""
        self._removed.add(run.name)
        directory = self._directory(run.name) if self._experiment is not None else None
        self._runs.pop(run.name, None)
        writer = self._writers.pop(run.name, None)
        if writer is not None:
            writer.close()
        if self._experiment is not None and directory is not None:
            shutil.rmtree(directory, ignore_errors=True)
            self._write_shared(self._experiment)

    # --- writing ------------------------------------------------------------------------------------------------------

    def _add_runs(self, experiment: Experiment) -> None:
        for run in experiment.runs:
            if run.name in self._runs or run.name in self._removed or run.state is RunState.DELETED:
                continue
            self._runs[run.name] = run
            directory = self._directory(run.name)
            if run.state.is_final and directory.exists():
                continue  # of an experiment that goes on; this run has said everything
            if directory.exists() and run.step:  # it goes on from a checkpoint, and logs the steps after it once more
                said = self._said[run.name] = read_said(directory, before=run.step + 1)
                self._writer(run.name, purge_step=run.step + 1)
                for result in run.chunks:  # TensorBoard drops those of a high number with the later steps
                    self._write_by_chunk(run, result)
                if said.state != hparams.STATES[run.state]:
                    self._write_state(run)
                continue
            # One that begins anew says everything once more. In a new directory, too: TensorBoard takes the first purge
            # that it sees for the beginning, and drops nothing there, but at each that follows.
            writer = self._writer(run.name, purge_step=0)
            self._write(writer, hparams.start_record(run, time.time(), experiment.runs))
            # A block of code four blanks in is Markdown's oldest form and needs no fence that YAML could contain.
            text = yaml.safe_dump(_plain(run.spec.config), sort_keys=False, allow_unicode=True, width=1000)
            writer.add_text("config", "".join(f"    {line}\n" for line in text.splitlines()), run.step)
            writer.add_text("overrides", "".join(f"    {part}\n" for part in run.overrides) or "none", run.step)
            writer.add_scalar("chunk", len(run.chunks), run.step)
            self._write_state(run)

    def _write_shared(self, experiment: Experiment) -> None:
        """Write the HParams table's head and the custom-scalars page, if they say something new.

        They go to a directory of a new name, because TensorBoard reads no second record in a directory it knows.
        """
        tags = _ordered(self._metrics, experiment.spec.objective.standing(run.metrics for run in self._runs.values()))
        made_of = {("run", name) for name in self._runs} | {("tag", tag) for tag in tags}
        if made_of <= self._shared_of:
            return
        self._shared_of = made_of
        record = hparams.experiment_record(list(self._runs.values()), tags)
        if (said := record.SerializeToString(deterministic=True)) == self._shared_record:
            return
        self._shared_record = said
        old = self._shared_name
        self._shared_number += 1
        writer = self._shared_writer()
        self._write(writer, record)
        page = _overlays(experiment.spec.objective)
        if any(run.is_evaluation for run in self._runs.values()):
            page |= _limits(experiment.spec.objective)
        writer.add_custom_scalars(page)
        self._write_text(experiment)
        if old != self._shared_name and old in self._writers:
            self._writers.pop(old).close()
            shutil.rmtree(self._directory(old))

    def _write_text(self, experiment: Experiment) -> None:
        """Write what the runs are, by their numbers, and how they stand."""
        if not self._shared_record:
            return
        self._shared_texts += 1
        self._shared_writer().add_text("runs", _table(experiment.runs), self._shared_texts)
        self._shared_writer().flush()

    def _write_state(self, run: Run) -> None:
        if run.name in self._writers:
            self._writers[run.name].add_scalar(STATE, hparams.STATES[run.state], run.step)
            self._writers[run.name].flush()

    def _write_by_chunk(self, run: Run, result: ChunkResult) -> None:
        chunk = run.chunks_before + result.chunk + 1
        said = self._said[run.name].by_chunk if run.name in self._said else set()
        for name, value in result.metrics.items():
            tag = f"{BY_CHUNK}{metric_tag(name)}"
            if (tag, chunk) not in said:
                self._writer(run.name).add_scalar(tag, value, chunk)

    @property
    def _shared_name(self) -> str:
        return f"{SHARED}-{self._shared_number}" if self._shared_number > 1 else SHARED

    def _shared_writer(self) -> CurvesWriter:
        return self._writer(self._shared_name)

    def _writer(self, name: str, purge_step: int | None = None) -> CurvesWriter:
        if name not in self._writers:
            self._writers[name] = CurvesWriter(
                str(self._directory(name)),
                purge_step=purge_step,
                max_queue=self._max_queue,
                flush_secs=self._flush_secs,
            )
        return self._writers[name]

    def _directory(self, name: str) -> Path:
        assert self._experiment is not None, "on_experiment_start comes before anything is logged"
        run = self._runs.get(name)
        if run is None:
            return self._experiment.paths.tensorboard / name
        there = self._experiment.paths.curves(run.number)
        return there if there.exists() else there.with_name(directory_name(run.number, run.overrides))

    def _write(self, writer: CurvesWriter, record: Summary, step: int = 0) -> None:
        file = writer._get_file_writer()
        file.add_summary(record, step)
        file.flush()

    def _close(self) -> None:
        writers, self._writers = list(self._writers.values()), {}
        _each(writers, methodcaller("close"))


def _each(writers: Sequence[CurvesWriter], do: Callable[[CurvesWriter], None]) -> None:
    """Do something with every writer, and only then raise what the first had to say that failed."""
    failures = []
    for writer in writers:
        try:
            do(writer)
        except OSError as error:
            failures.append(error)
    if failures:
        raise failures[0]


def _table(runs: Sequence[Run]) -> str:
    """Return the runs as a table in Markdown."""
    lines = ["| run | overrides | state | parent |", "|---|---|---|---|"]
    for run in runs:
        overrides = " ".join(run.overrides).replace("|", "\\|") or "(defaults)"
        parent = "" if run.parent is None else str(run.parent)
        lines.append(f"| {run.number} | {overrides} | {run.state.value} | {parent} |")
    return "\n".join(lines)


def _image(tag: str, png: bytes) -> Summary:
    """Return a picture in a PNG file, whose size stands in its head, as a summary."""
    width, height = struct.unpack(">II", png[16:24])
    image = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=png)
    return Summary(value=[Summary.Value(tag=tag, image=image)])


def _as_text(answer: Answer) -> str:
    """Return an answer with its prompt as Markdown that shows every character as it is."""
    parts = {"prompt": answer.prompt, "answer": answer.answer, "expected": answer.reference}
    blocks = ["".join(f"    {line}\n" for line in text.splitlines()) for text in parts.values()]
    return "\n".join(f"**{name}**\n\n{block}" for name, block in zip(parts, blocks, strict=True) if block)


def _ordered(tags: Mapping[str, None], objective: Objective) -> list[str]:
    """Put what people compare first: the objective, the losses, then the rest, timings last."""
    first = (metric_tag(objective.metric), "eval/loss", "train/loss", *OF_EVERY_RUN)
    timings = ("runtime", "per_second")
    return sorted(
        {**tags, **dict.fromkeys(OF_EVERY_RUN)},
        key=lambda tag: (first.index(tag) if tag in first else len(first), tag.endswith(timings), tag),
    )


def _overlays(objective: Objective) -> dict[str, dict[str, list[Any]]]:
    """Return the custom-scalars page: each chart draws all runs, as its tag is a pattern without a run's name."""
    charts = {
        "loss": "train/loss",
        "eval_loss": "eval/loss",
        "learning_rate": "train/learning_rate",
    }
    if metric_tag(objective.metric) not in charts.values():
        charts = {objective.metric: metric_tag(objective.metric)} | charts
    return {"all runs": {title: ["Multiline", [f"^{re.escape(tag)}$"]] for title, tag in charts.items()}}


def _limits(objective: Objective) -> dict[str, dict[str, list[Any]]]:
    """Return a page on which each evaluation's value has its limits around it, for the runs that are chosen."""
    tag = metric_tag(objective.metric)
    return {"limits": {objective.metric: ["Margin", [tag, f"{tag}_low", f"{tag}_high"]]}}


def _plain(node: Any) -> Any:
    """Turn what YAML cannot write into text."""
    if isinstance(node, Mapping):
        return {str(key): _plain(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_plain(value) for value in node]
    return node if node is None or isinstance(node, bool | int | float | str) else str(node)
