"""A trainer that can be suspended.

``trainer.train()`` runs inside a greenlet. A callback of ours switches back to whoever resumed it: when training is
about to begin, from time to time with what was logged, and at every chunk boundary. The trainer is unmodified and
notices nothing: nothing is rebuilt, and each switch happens between two optimizer steps, behind whatever the trainer
itself does at the end of a step (logging, evaluating, saving).
"""

from __future__ import annotations

import contextvars
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import greenlet
import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rfflow.errors import ConfigError
from rfflow.runs.chunks import Answer, ChunkPlan, chunk_ends
from rfflow.runs.events import Boundary, Finished, Log, Pause, Progress, Ready
from rfflow.worker.training import snapshot
from rfflow.worker.training.context import unmoved_random_state
from rfflow.worker.training.expected_metrics import by_set, check_best_metric, evaluation_sets, foresee
from rfflow.worker.training.generation_cycles import GenerationClock, cycle_steps, skip_epochs
from rfflow.worker.training.unnoticed import unnoticed

log = logging.getLogger(__name__)


# The trainer counts these by the clock on the wall, with the time in which the other runs had the device.
_WHILE_SUSPENDED = ("train_runtime", "train_samples_per_second", "train_steps_per_second")


class TrainerCoroutine:
    """One run's trainer, from before its first step to after its last.

    Call :meth:`resume` inside the run's context, and only there.
    """

    def __init__(
        self,
        trainer: Trainer,
        chunks: int,
        *,
        evaluate: bool = True,
        finish: Callable[[Trainer], None] | None = None,
        progress_every: float = 0.5,
        checkpoint: Path | None = None,
        variables: contextvars.Context | None = None,
    ):
        """Wrap ``trainer``.

        Args:
            trainer: any ``transformers.Trainer``, as its own script would have built it.
            chunks: chunks an epoch.
            evaluate: evaluate at every boundary at which the trainer does not do so itself.
            finish: called with the trainer when training has ended, before the coroutine does.
            progress_every: seconds between two :class:`Progress` pauses.
            checkpoint: where to go on from, as :meth:`snapshot` left it.
            variables: the context variables to train with; without them, a copy of what they are now.
        """
        self.trainer = trainer
        self.generate: Callable[[Trainer], tuple[dict[str, float], tuple[Answer, ...]]] | None = None
        """Called at every boundary, to answer rows and score the answers; whatever it draws leaves no trace."""
        self.is_hurried = False
        """Set it to make the trainer pause behind its current step."""
        self.is_through = False
        """Whether it has ended, and not by an error."""
        self._finish = finish
        self._checkpoint = checkpoint
        self._callback = _SuspendingCallback(self, chunks, evaluate, progress_every)
        trainer.add_callback(self._callback)
        self.snapshots = snapshot.Snapshots(trainer, self._callback)
        self._greenlet = greenlet.greenlet(self._train)
        # Without this all of them would be unset in there, numpy's way with errors among them.
        self._greenlet.gr_context = variables or contextvars.copy_context()

    @property
    def is_finished(self) -> bool:
        """Whether there is nothing left to resume."""
        return self._greenlet.dead

    def resume(self, reply: Any = None) -> Any:
        """Go on to the next pause.

        Args:
            reply: what :meth:`meet` returns inside, if the trainer stands there.

        Returns:
            A :data:`Pause`, or what the trainer has met with.

        Raises:
            ConfigError: if the run has fewer steps than chunks (from the first call only).
            Exception: whatever the trainer raised; the coroutine is over then.
        """
        assert not self._greenlet.dead, "the trainer has ended"
        self._greenlet.parent = greenlet.getcurrent()
        return self._greenlet.switch() if reply is None else self._greenlet.switch(reply)

    def meet(self, meeting: Any) -> Any:
        """Pause in the middle of a step, and return what :meth:`resume` brings; nothing where another thread calls."""
        if greenlet.getcurrent() is not self._greenlet:
            return None
        return self._greenlet.parent.switch(meeting)

    def snapshot(self, folder: Path, trained: Mapping[str, torch.Tensor] | None = None) -> Callable[[], None]:
        """Write what is small of the suspended trainer, and return what writes its tensors; see :mod:`.snapshot`."""
        return self.snapshots.take(folder, trained)

    def close(self) -> None:
        """Abandon the trainer where it stands, letting its ``finally`` clauses run; what they raise is logged."""
        if self._greenlet and not self._greenlet.dead:
            self._greenlet.parent = greenlet.getcurrent()
            try:
                self._greenlet.throw(greenlet.GreenletExit)
            except Exception:
                log.exception("The trainer raised while it was given up")

    def _train(self) -> Finished:
        if self._checkpoint is None:
            self.trainer.train()
        else:
            self.trainer.args.eval_on_start = False  # it has evaluated when it started
            snapshot.load_adapter_as_it_is(self.trainer.model)
            self.trainer.train(resume_from_checkpoint=str(self._checkpoint))
        boundary = self._callback.last_boundary()
        if self._finish is not None:
            with unmoved_random_state(self.trainer.args.device):
                self._finish(self.trainer)
        self.is_through = True
        return boundary

    def _pause(self, pause: Pause) -> None:
        greenlet.getcurrent().parent.switch(pause)


class _SuspendingCallback(TrainerCallback):
    """Finds the boundaries, collects the logs, and pauses."""

    def __init__(self, coroutine: TrainerCoroutine, chunks: int, evaluate: bool, progress_every: float):
        self._coroutine = coroutine
        self._chunks = chunks
        self._evaluate = evaluate
        self._progress_every = progress_every
        self._ends: frozenset[int] = frozenset()
        self._steps_per_epoch = self._cycle = 1
        self._logs: list[Log] = []
        self._loss: float | None = None
        self.chunk_began: tuple[int, float] | None = None
        """The step behind which the chunk begins, and the sum of all losses up to there."""
        self._evaluated: tuple[int, dict[str, float]] | None = None
        self._boundary_is_due = False
        self._last_pause = self._chunk_began = time.monotonic()
        self._generation = GenerationClock(coroutine.trainer)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: Any = None,
        **_: Any,
    ) -> None:
        steps_per_epoch, cycle = _steps_per_epoch(args, state, train_dataloader), cycle_steps(args)
        try:
            ends = chunk_ends(steps_per_epoch, self._chunks, state.max_steps, cycle)
        except ValueError as error:
            cycles = -(-steps_per_epoch // cycle)
            steps = "step" if steps_per_epoch == 1 else "steps"
            whole = f", in {cycles} generation cycles of {cycle}, which are not cut" if cycle > 1 else ""
            raise ConfigError(
                f"chunks is {self._chunks}, but an epoch has only {steps_per_epoch} optimizer {steps}{whole}. "
                f"Allowed: 1 to {cycles}. More data or a smaller batch makes more steps."
            ) from error
        if not ends:
            raise ConfigError(
                f"The run takes no optimizer step: trainer.args.num_train_epochs is {args.num_train_epochs} and "
                f"max_steps is {args.max_steps}. Allowed: more than 0 of one of them."
            )
        self._ends = frozenset(ends)
        self._steps_per_epoch, self._cycle = steps_per_epoch, cycle
        if self._coroutine._checkpoint is not None:
            snapshot.restore_forgotten(self._coroutine.trainer, self._coroutine._checkpoint, self)
            skip_epochs(train_dataloader, state.global_step // steps_per_epoch)
        if self.chunk_began is None:
            self.chunk_began = (state.global_step, _sum_of_losses(self._coroutine.trainer))
        scores = getattr(self._coroutine.generate, "names", None) if self._coroutine.generate is not None else ()
        expected = foresee(self._coroutine.trainer, evaluates=self._evaluate, scores=scores)
        check_best_metric(args, expected)
        self._pause(Ready(ChunkPlan(ends, self._chunks), expected))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step in self._ends:
            self._boundary_is_due = True
            self._end_chunk(state)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        numbers = {
            key: float(value)
            for key, value in (logs or {}).items()
            if isinstance(value, (int, float)) and key not in _WHILE_SUSPENDED
        }
        numbers = by_set(numbers, evaluation_sets(self._coroutine.trainer))
        self._logs.append((state.global_step, numbers))

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any = None, **_: Any
    ) -> None:
        numbers = {key: float(value) for key, value in (metrics or {}).items() if isinstance(value, (int, float))}
        sets = evaluation_sets(self._coroutine.trainer)
        numbers = by_set(numbers, sets)
        if self._evaluated is not None and self._evaluated[0] == state.global_step:
            numbers = {**self._evaluated[1], **numbers}  # several evaluation sets, one after the other
        losses = [numbers[name] for name in (f"eval_{name}_loss" for name in sets) if name in numbers]
        if sets and len(losses) == len(sets):  # that was the last of them
            numbers["eval_loss"] = sum(losses) / len(losses)
            self._logs.append((state.global_step, {"eval_loss": numbers["eval_loss"]}))
        self._evaluated = (state.global_step, numbers)

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        # Here and not at the epoch's first step: a resume restores the random generators before it makes the epoch's
        # iterator, which draws. In the middle of an epoch it restores them behind the fetch of the first batch.
        self._pause_if_due(state, can_checkpoint=True)

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        assert self.chunk_began is not None
        if state.global_step > self.chunk_began[0]:  # a callback of the user's ends the run in the middle of a chunk
            self._end_chunk(state)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        # The first moment after a step at which the trainer has logged, evaluated and saved.
        within = state.global_step % self._steps_per_epoch
        self._pause_if_due(state, can_checkpoint=within != 0 and within % self._cycle == 0)

    def _pause_if_due(self, state: TrainerState, can_checkpoint: bool) -> None:
        is_hurried = self._coroutine.is_hurried and can_checkpoint
        if self._boundary_is_due:
            self._pause(self._make_boundary(Boundary))
        elif is_hurried or (self._logs and time.monotonic() - self._last_pause >= self._progress_every):
            self._pause(Progress(state.global_step, self._take_logs(), can_checkpoint))

    def _end_chunk(self, state: TrainerState) -> None:
        assert self.chunk_began is not None
        # The mean over the chunk: a single step's loss says more about its rows than about the run.
        (first, before), total = self.chunk_began, _sum_of_losses(self._coroutine.trainer)
        self._loss = (total - before) / max(state.global_step - first, 1)
        self.chunk_began = (state.global_step, total)

    def last_boundary(self) -> Finished:
        """Return the run's end; called when ``train()`` has returned."""
        boundary = self._make_boundary(Finished)
        assert isinstance(boundary, Finished)
        return boundary

    def _pause(self, pause: Pause) -> None:
        self._coroutine._pause(pause)
        self._last_pause = time.monotonic()
        if not isinstance(pause, Progress):
            self._chunk_began = self._last_pause
            self._generation.seconds = 0.0

    def _make_boundary(self, kind: type[Boundary]) -> Boundary:
        trainer = self._coroutine.trainer
        self._boundary_is_due = False
        if self._generation.is_running:
            share = self._generation.seconds / (time.monotonic() - self._chunk_began)
            self._logs.append((trainer.state.global_step, {"generation_share": share}))
        metrics = {} if self._loss is None else {"loss": self._loss}
        metrics.update(self._evaluate_here(trainer))
        answers: tuple[Answer, ...] = ()
        if self._coroutine.generate is not None:
            with unnoticed(trainer, self):
                if callable(switch := getattr(trainer.optimizer, "eval", None)):
                    switch()  # to the weights that it would evaluate
                scores, answers = self._coroutine.generate(trainer)
            metrics.update(scores)
            self._logs.append((trainer.state.global_step, scores))
        return kind(trainer.state.global_step, self._take_logs(), metrics, answers, _running_means(trainer))

    def _evaluate_here(self, trainer: Trainer) -> dict[str, float]:
        step = trainer.state.global_step
        if self._evaluated is not None and self._evaluated[0] == step:
            return self._evaluated[1]
        if not self._evaluate or trainer.eval_dataset is None:
            return {}
        with unnoticed(trainer, self):
            trainer.evaluate()
        assert self._evaluated is not None
        return self._evaluated[1]

    def _take_logs(self) -> tuple[Log, ...]:
        logs, self._logs = tuple(self._logs), []
        return logs


def _steps_per_epoch(args: TrainingArguments, state: TrainerState, dataloader: Any) -> int:
    try:
        batches = len(dataloader)
    except TypeError:  # a streaming data set has no epochs that could be counted: the whole run is one
        return state.max_steps
    return max(-(-batches // args.gradient_accumulation_steps), 1)


def _running_means(trainer: Trainer) -> dict[str, float]:
    """Return the means of what one of TRL's trainers has counted since it logged last. Reading them moves nothing."""
    counted: Mapping[str, Sequence[float]] = (getattr(trainer, "_metrics", None) or {}).get("train", {})
    numbers = {name: [value for value in values if value == value] for name, values in counted.items()}
    return {name: float(sum(values) / len(values)) for name, values in numbers.items() if values}


def _sum_of_losses(trainer: Trainer) -> float:
    """Return the sum of the losses of all steps, as the trainer counts it. Reading it moves nothing."""
    return float(trainer._total_loss_scalar + trainer._tr_loss.item())
