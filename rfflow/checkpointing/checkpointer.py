"""Keeps an experiment safe while it runs: a checkpoint of every run, and ``experiment.json`` over all of them."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rfflow.checkpointing import experiment_file, provenance
from rfflow.checkpointing.checkpoints import Checkpoint, Checkpoints
from rfflow.checkpointing.disk import Told
from rfflow.checkpointing.experiment_file import OpOutcome, RunRecord, SavedExperiment
from rfflow.checkpointing.starting import Command
from rfflow.confidential import digest, without_secrets
from rfflow.config.spec import RunSpec
from rfflow.control.journal import Past
from rfflow.errors import kind_of
from rfflow.runs.events import Commit, SaveNow
from rfflow.runs.experiment import Experiment
from rfflow.runs.owner import Owner, checksum, read_label
from rfflow.runs.run import Run, RunState

log = logging.getLogger(__name__)


class Checkpointer:
    """Writes what it takes to go on after a crash, and reads it back.

    Whatever cannot be written ends the experiment with an :class:`EngineError`: what is trained unsaved would be lost.
    """

    def __init__(
        self,
        experiment: Experiment,
        job_of: Callable[[int], tuple[str, ...] | None],
        command: Command | None = None,
    ):
        """Write nothing yet.

        Args:
            experiment: whose runs are kept.
            job_of: returns the overrides of a run's Hydra job.
            command: what started it, where a command line did.
        """
        self._experiment = experiment
        self._spec = experiment.spec.checkpoint
        self._job_of = job_of
        self._saved_step: dict[int, int] = {}
        """The step of each run's last checkpoint, written or on its way."""
        self._writing: dict[int, int] = {}
        """The step of the checkpoint that is on its way, by run."""
        self._written: dict[int, tuple[RunRecord, str]] = {}
        """How runs stand in the file; between two boundaries hardly any of them changes."""
        self._start_steps: dict[int, int | None] = {}
        """The steps at which the parents of clones that began warm had the weights that these began with."""
        self._reached: dict[int, int] = {}
        """The chunks that each run has done, in this process or the one before."""
        self._last_answer: OpOutcome | None = None
        self.imagined: Sequence[tuple[int, Past]] = ()
        """What a policy would have done in a dry run."""
        self._is_first = True
        self._versions = provenance.versions()
        self._program = provenance.program()
        self._command = command
        self._configs: dict[int, tuple[RunSpec, str, dict[str, str]]] = {}
        """Each run's configuration as it stands in the file, and the digests of what is not shown of it.

        With the spec that they are of: a clone that was refused leaves its number to the next one.
        """
        self.data: Mapping[str, str] = {}
        """Fingerprints of the rows."""

    # --- while training -----------------------------------------------------------------------------------------------

    def is_due(self, run: Run) -> bool:
        """Whether a checkpoint is to be begun at the run's next boundary.

        :meth:`commit` ends it: between the two everybody hears of the boundary, and what they have written must not be
        older than the checkpoint.
        """
        return self._spec.every is not None and (len(run.chunks) + 1) % self._spec.every == 0

    def commit(self, run: Run) -> Commit | None:
        """Return what ends the checkpoint that was begun at the boundary where the run stands, if one was."""
        if self._spec.every is None or not run.chunks or len(run.chunks) % self._spec.every:
            return None
        self._note(run)
        return Commit(run.number, experiment_file.progress_of(run), self._keep(run, run.step))

    def save_now(self, run: Run) -> SaveNow | None:
        """Return what saves a run as it stands, unless there is such a checkpoint."""
        if self.is_saved(run):
            return None
        self._note(run)
        return SaveNow(run.number, run.step, experiment_file.progress_of(run), self._keep(run, run.step))

    def sealed(self, run: int, step: int) -> None:
        """Take note that a checkpoint is on the disk."""
        if self._writing.get(run) == step:
            del self._writing[run]

    def lost(self, run: int) -> None:
        """Take note that a checkpoint could not be written."""
        self._writing.pop(run, None)
        self._saved_step.pop(run, None)

    def fall_back(self, run: Run) -> Checkpoint | None:
        """The run's trainer is gone: what stands of it is its last checkpoint that is whole. Return that."""
        self.lost(run.number)
        checkpoint = self.newest(run)
        if checkpoint is not None:
            self._saved_step[run.number] = checkpoint.step
        return checkpoint

    def is_writing(self, run: Run) -> bool:
        """Whether a checkpoint of the run is on its way to the disk."""
        return run.number in self._writing

    @property
    def is_busy(self) -> bool:
        """Whether any checkpoint is."""
        return bool(self._writing)

    def is_saved(self, run: Run) -> bool:
        """Whether there is a checkpoint of the run as it stands, or none is wanted."""
        return self._spec.every is None or run.step in (0, self._saved_step.get(run.number))

    def is_on_disk(self, run: Run) -> bool:
        """Whether the run could go on elsewhere from where it stands."""
        return run.step in (0, self._saved_step.get(run.number)) and run.number not in self._writing

    def is_behind(self, run: Run) -> bool:
        """Whether the run was further before the process ended that it goes on from."""
        return len(run.chunks) < self._reached.get(run.number, 0)

    def go_on(self, before: SavedExperiment) -> None:
        """Take over what an earlier process had answered."""
        self._last_answer, self._is_first, self.imagined = before.answer, False, before.imagined

    def write(
        self, ahead: Callable[[int], float], answer: OpOutcome | None = None, *, is_finished: bool = False
    ) -> None:
        """Write ``experiment.json``.

        Args:
            ahead: how much of its fair share a run has used, less the chunks it has done.
            answer: an op file whose ops are in the runs' states, and for good once this returns.
            is_finished: whether nothing is left to do.
        """
        if self._spec.every is None:
            return
        self._last_answer = answer or self._last_answer
        runs = [self._record(run, ahead(run.number)) for run in self._experiment.runs]
        for record in runs:
            before = self._written.get(record.number)
            if before is None or before[0] != record:
                self._written[record.number] = record, experiment_file.run_text(record)
        state = SavedExperiment(
            name=self._experiment.spec.name,
            started=self._experiment.started,
            objective=self._experiment.spec.objective,
            id=self._experiment.id,
            runs=tuple(runs),
            answer=self._last_answer,
            data=self.data,
            versions=self._versions,
            is_finished=is_finished,
            imagined=tuple(self.imagined),
            program=self._program,
            command=self._command,
        )
        with self._told("experiment.json"):
            texts = {number: text for number, (_, text) in self._written.items()}
            experiment_file.write(self._experiment.paths.state, state, texts, is_first=self._is_first)
        self._is_first = False

    def ended(self, run: Run) -> None:
        """Remove the checkpoints that nobody needs of a run that has completed; call it behind :meth:`write`."""
        if self._spec.every is None:
            return
        keep = self._spec.keep
        checkpoints = self._checkpoints(run)
        steps = {step for step in (self._best_step(run, checkpoints.steps()),) if "best" in keep and step is not None}
        if "last" in keep:
            steps.update(checkpoints.steps()[:1])
        with self._told(f"the checkpoints of run {run.number}"):
            checkpoints.keep_only(steps)
        if "final" not in keep:
            shutil.rmtree(run.paths.final, ignore_errors=True)

    def started_warm(self, run: Run) -> None:
        """Remember which of its parent's weights a clone began with."""
        self._start_steps[run.number] = (read_label(run.paths.start) or {}).get("step")

    def forget_writing(self) -> None:
        """Nobody writes any more; what was not sealed by now is not there."""
        self._writing.clear()

    # --- after a crash ------------------------------------------------------------------------------------------------

    def restore(self, run: Run, record: RunRecord) -> Path | None:
        """Give a run its past back; return the checkpoint to go on from, if it has one and is not over."""
        run.parent, run.first_chunk, run.state = record.parent, record.first_chunk, record.state
        run.chunks_before, run.recomputes, run.activations = record.chunks_before, record.recomputes, record.activations
        self._reached[run.number] = record.done
        # What its checkpoints were written with: a variable of the environment may have another value now.
        self._configs[run.number] = run.spec, record.config, dict(record.digests)
        run.is_warm = record.is_warm
        if record.is_warm:
            self._start_steps[run.number] = record.start_step
        if record.state.is_final:
            run.chunks, run.metrics, run.plan = list(record.chunks), dict(record.metrics), record.plan
            run.logs = record.logs
            run.step = run.chunks[-1].step if run.chunks else 0
            run.error = None if record.error is None else _past_error(*record.error)
            self.check_weights(run)
            return None
        self._check_start(run, record)
        checkpoints = self._checkpoints(run)
        checkpoints.clean()
        newest = checkpoints.newest()
        if newest is None:
            run.state = RunState.STOPPED if record.state is RunState.STOPPED else RunState.QUEUED
            run.paths.weights.unlink(missing_ok=True)  # of a boundary that the run will come to once more
            return None
        self._take_over(run, newest)
        if run.chunks and run.step != run.chunks[-1].step:  # else they are written anew; they may be ahead of it
            self._check_weights(run, set())
        return newest.path

    def owner(self, run: Run) -> Owner:
        """Return what the files of a run say of whose they are."""
        return Owner(self._experiment.id, run.number, checksum(self._config(run)[0]))

    def check_weights(self, run: Run) -> None:
        """Check that the weights of a run's last boundary, where there are any, are its own.

        Raises:
            ForeignFile: if they are another run's.
        """
        self._check_weights(run, {chunk.step for chunk in run.chunks})

    def _check_weights(self, run: Run, steps: set[int]) -> None:
        if run.paths.weights.is_file():
            self.owner(run).check(run.paths.weights, read_label(run.paths.weights), steps)

    def _check_start(self, run: Run, record: RunRecord) -> None:
        if record.is_warm and record.start_step is not None and record.parent is not None:
            label = read_label(run.paths.start)
            # The parent may not be there yet; its number and its step say enough.
            parent = Owner(self._experiment.id, record.parent, (label or {}).get("config", ""))
            parent.check(run.paths.start, label, {record.start_step})

    def newest(self, run: Run) -> Checkpoint | None:
        """Return the last checkpoint of a run that is whole."""
        return self._checkpoints(run).newest()

    def _take_over(self, run: Run, checkpoint: Checkpoint) -> None:
        run.chunks = experiment_file.chunks_from(checkpoint.progress["chunks"])
        run.metrics = dict(checkpoint.progress["metrics"])
        run.logged_at = dict(checkpoint.progress.get("logged_at", {}))
        run.logs = checkpoint.progress.get("logs", 0)
        run.step = checkpoint.step
        self._saved_step[run.number] = checkpoint.step
        if run.state is RunState.QUEUED:  # it was stopped and resumed before it got the device again
            run.state = RunState.RUNNING

    # --- details ------------------------------------------------------------------------------------------------------

    def _note(self, run: Run) -> None:
        self._saved_step[run.number] = self._writing[run.number] = run.step

    def _checkpoints(self, run: Run) -> Checkpoints:
        return Checkpoints(run.paths.checkpoints, self.owner(run))

    def _keep(self, run: Run, newest: int) -> frozenset[int]:
        """The new one, the one before in case it gets damaged, and the best so far if that is asked for."""
        steps = [newest, *(step for step in self._checkpoints(run).steps() if step < newest)]
        keep = set(steps[:2])
        best = self._best_step(run, steps)
        if "best" in self._spec.keep and best is not None:
            keep.add(best)
        return frozenset(keep)

    def _best_step(self, run: Run, steps: list[int]) -> int | None:
        objective = self._experiment.spec.objective
        there = [chunk for chunk in run.chunks if chunk.step in steps and objective.value(chunk.metrics) is not None]
        return min(there, key=lambda chunk: objective.sort_key(chunk.metrics)).step if there else None

    def _record(self, run: Run, ahead: float) -> RunRecord:
        has_ended = run.state.is_final
        config, digests = self._config(run)
        self._reached[run.number] = max(len(run.chunks), self._reached.get(run.number, 0))
        return RunRecord(
            number=run.number,
            state=run.state,
            overrides=tuple(run.overrides),
            job=self._job_of(run.number),
            directory=self._experiment.paths.relative(run.paths),
            parent=run.parent,
            first_chunk=run.first_chunk,
            chunks_before=run.chunks_before,
            is_warm=run.is_warm,
            start_step=self._start_steps.get(run.number),
            done=self._reached[run.number],
            ahead=ahead,
            config=config,
            digests=digests,
            error=None if run.error is None else (kind_of(run.error), without_secrets(str(run.error))),
            chunks=tuple(run.chunks) if has_ended else (),
            metrics=dict(run.metrics) if has_ended else {},
            logs=run.logs if has_ended else 0,
            plan=run.plan if has_ended else None,
            recomputes=run.recomputes,
            activations=run.activations,
        )

    def _config(self, run: Run) -> tuple[str, dict[str, str]]:
        spec, text, digests = self._configs.get(run.number, (None, "", {}))
        if spec is not run.spec:
            text = experiment_file.config_text(run.spec.config)
            digests = {key: digest(value) for key, value in run.spec.hidden.items()}
            self._configs[run.number] = run.spec, text, digests
        return text, digests

    def _told(self, what: str) -> Told:
        return Told(what, self._experiment.paths.root)


def _past_error(kind: str, message: str) -> Exception:
    """Make an exception that reads as the one of a process that is gone."""
    return type(kind, (Exception,), {})(message)
