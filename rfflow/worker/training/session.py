"""A run as the engine handles it: its trainer's coroutine inside its context."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from rfflow.config.claims import check_alone, claims_of
from rfflow.config.spec import BuiltSpec, TrainSpec
from rfflow.errors import ConfigError, RunFailed
from rfflow.files import replace_text
from rfflow.runs.activations import Activations
from rfflow.runs.events import Boundary, Pause, Progress, Ready, WarmStart
from rfflow.runs.run import RunCard
from rfflow.worker.data.checks import what_is_dropped
from rfflow.worker.memory.allocator import map_each_block
from rfflow.worker.memory.offload import RunTensors, own_tensors, trained_bytes
from rfflow.worker.memory.sizes import Need, lora_bytes
from rfflow.worker.models.bases import Base
from rfflow.worker.shared import Shared
from rfflow.worker.training import activations
from rfflow.worker.training.answers import Generation, Generations
from rfflow.worker.training.build import build_trainer, call_builder, refusals
from rfflow.worker.training.clients import claims_of_trainer, end_clients
from rfflow.worker.training.context import RunContext, Stay
from rfflow.worker.training.coroutine import TrainerCoroutine
from rfflow.worker.training.longest import longest_batch
from rfflow.worker.training.warm_start import all_finite, load_weights, start_at_chunk, trained_weights

log = logging.getLogger(__name__)


class TrainingSession:
    """One run on its way from spec to adapter."""

    def __init__(self, run: RunCard, shared: Shared, *, capture_output: bool = True, hydra: Any = None):
        assert isinstance(run.spec, TrainSpec | BuiltSpec), "an evaluation has a session of another kind"
        self.run = run
        self._spec = run.spec
        self.context = RunContext(shared.fabric.device, run.paths.log, capture_output=capture_output, hydra=hydra)
        self.holdings: RunTensors | None = None
        """What the run owns on the device; known once it is prepared."""
        self._shared = shared
        self._coroutine: TrainerCoroutine | None = None
        self._step = 0
        """Where the run stands."""
        self._measured = 0
        """How many weights had a state in the optimizer when the holdings were last measured."""
        self._unkept: dict[str, torch.Tensor] | None = None
        """The weights of the last boundary until they are saved."""

    def prepare(
        self,
        warm_start: WarmStart | None = None,
        checkpoint: Path | None = None,
        *,
        step: int = 0,
        is_at_boundary: bool = False,
    ) -> Ready:
        """Build the trainer and take it to just before its first step.

        Args:
            warm_start: where the weights come from, and which chunk is the first.
            checkpoint: where a run goes on from that has trained before.
            step: the one at which that was.
            is_at_boundary: whether that is the end of a chunk.

        Raises:
            ConfigError: if the run cannot be built, naming it.
            OpError: if the warm start does not fit.
        """
        spec, self._step = self._spec, step
        try:
            self._claim((spec.trainer.args if isinstance(spec, TrainSpec) else {}).get)
            build = self._plan()
            with self._leaving_bases_alone(), self.context.active():
                trainer = self.context.variables.run(build)
                _keep_token_out(trainer)
                self._claim(lambda name: getattr(trainer.args, name, None))
                settled = self._settle_activations(trainer)
                if isinstance(spec, TrainSpec):
                    self._shared.first_evaluations.share(trainer, spec, self._bases()[0])
                else:
                    self._shared.note_rows(self.run.number, trainer)
                if warm_start is not None:
                    self._warm(trainer, warm_start)
                self._coroutine = TrainerCoroutine(
                    trainer,
                    spec.chunks,
                    evaluate=spec.evaluate,
                    finish=self._save,
                    checkpoint=checkpoint,
                    variables=self.context.variables,
                )
                if isinstance(spec, TrainSpec) and spec.peft is not None:
                    self._coroutine.snapshots.names = self._shared.adapter_names(spec)
                if isinstance(spec, TrainSpec) and spec.generate is not None:
                    rows = self._shared.data(spec.dataset, spec.trainer).eval
                    kind: Any = Generations if isinstance(rows, dict) else Generation
                    self._coroutine.generate = kind(spec.generate, rows, trainer.processing_class)
                with refusals("The trainer cannot begin", ValueError, TypeError, LookupError):
                    ready = self._coroutine.resume()
                claims = self.context.variables.run(list, claims_of_trainer(trainer))
                self._shared.claims.take(self.run.number, claims)
            self._hold(trainer)
            if isinstance(spec, TrainSpec):  # here, where it goes to the terminal and not to the run's own log
                self._shared.say(what_is_dropped(trainer, self._shared.data(spec.dataset, spec.trainer)))
        except (ConfigError, RunFailed) as error:
            raise ConfigError(f"{self.run.called}: {error}") from error
        finally:
            self._shared.bases.part_tokenizers()
        assert isinstance(ready, Ready)
        if isinstance(spec, TrainSpec):
            ready = replace(ready, arguments=self._shared.untold_arguments(spec), activations=settled)
        if is_at_boundary:
            self._unkept = trained_weights(trainer.model)
        return ready

    def advance(self) -> Pause:
        """Train to the next pause.

        Raises:
            RunFailed: if the run has changed weights that it shares with others, which have them back now.
            EngineError: if they could not be restored.
        """
        pause: Pause = self.go_on()
        return pause

    def go_on(self, reply: Any = None) -> Any:
        """Do as :meth:`advance` does, in a gang: the trainer may also come to where it waits for the others.

        Args:
            reply: what it goes on with, if it stands there.

        Returns:
            A :data:`Pause`, or what :meth:`.TrainerCoroutine.meet` was called with.
        """
        assert self._coroutine is not None and self.holdings is not None, "prepare() comes first"
        with self._leaving_bases_alone() as looking, self.context.active(is_brief=reply is not None) as stay:
            pause = self._coroutine.resume(reply)
            stay.is_brief = looking.is_brief = not isinstance(pause, Ready | Progress | Boundary)
        if not isinstance(pause, Progress | Boundary):
            return pause
        self._step = pause.step
        if isinstance(pause, Boundary):
            optimizer = self._coroutine.trainer.optimizer
            if optimizer is not None and len(optimizer.state) != self._measured:  # what it has made is there now
                self._measured = len(optimizer.state)
                self.holdings.measure()
            self._unkept = trained_weights(self._coroutine.trainer.model)
            if not all_finite(self._unkept):
                self._unkept = None
                pause = replace(pause, is_finite=False)
        return pause

    @property
    def coroutine(self) -> TrainerCoroutine:
        """The trainer's."""
        assert self._coroutine is not None, "prepare() comes first"
        return self._coroutine

    @property
    def spec(self) -> TrainSpec:
        """Its configuration; of a trainer that an app has built there is none."""
        assert isinstance(self._spec, TrainSpec), "an app has built it"
        return self._spec

    @property
    def base(self) -> Base:
        """The model whose weights its adapter leaves alone."""
        return self._bases()[0]

    def load_weights(self, warm_start: WarmStart) -> None:
        """Load weights once more, before the first step: the parent has trained on since the run was built."""
        assert self._coroutine is not None, "prepare() comes first"
        weights = self._shared.fabric.load(warm_start.weights)["weights"]
        load_weights(self._coroutine.trainer.model, weights, warm_start.parent)

    def keep_weights(self) -> None:
        """Save the weights of the boundary for clones that start warm, unless :meth:`snapshot` has seen to it.

        They are wanted of a run that fails later or has left the device, too. Weights that are no numbers are not kept.
        """
        if self._unkept is not None:
            weights, self._unkept = self._unkept, None
            self._shared.saving_weights(self.run, self._step, weights)()

    def hurry(self) -> None:
        """Make the trainer pause behind its current step, at the first place from which a resume is exact."""
        if self._coroutine is not None:
            self._coroutine.is_hurried = True

    def snapshot(self, folder: Path) -> Callable[[], None]:
        """Write what is small of the suspended run to an empty folder, and return what writes its tensors.

        What is returned may be called from another thread while the run stays suspended and its tensors in place. At a
        boundary it does what :meth:`keep_weights` does, too.
        """
        assert self._coroutine is not None, "prepare() comes first"
        with self.context.active(is_brief=True) as stay:  # what was logged was looked at when it came here
            stay.is_brief = True
            write_tensors = self._coroutine.snapshot(folder, self._unkept)
        weights, self._unkept = self._unkept, None
        if weights is None:
            return write_tensors

        write_weights = self._shared.saving_weights(self.run, self._step, weights)

        def write() -> None:
            write_tensors()
            write_weights()

        return write

    def close(self) -> None:
        """Let go of the trainer and what it holds."""
        status = "KILLED"
        if self._coroutine is not None:
            if self._coroutine.is_finished:
                status = "FINISHED" if self._coroutine.is_through else "FAILED"
            with self.context.active():
                self._coroutine.close()
                end_clients(self._coroutine.trainer)
            self._coroutine = None
        if self.holdings is not None:
            self.holdings.forget()
        self._shared.claims.release(self.run.number, has_trained=self._step > 0)
        self.context.close(status)

    def _plan(self) -> Callable[[], Trainer]:
        """Load what the run shares; return what builds its trainer."""
        spec = self._spec
        if isinstance(spec, BuiltSpec):
            return functools.partial(call_builder, spec.build)
        base, *references = self._bases()
        data = self._shared.data(spec.dataset, spec.trainer)
        own = base.bytes if spec.peft is None else lora_bytes(spec.peft, base.model)
        optim = str(spec.trainer.args.get("optim", "adamw"))
        self._require(Need.of(own, own, optim))
        device, reference = self._shared.fabric.device, next(iter(references), None)
        checkpoints = self.run.paths.checkpoints
        return functools.partial(build_trainer, spec, base, data, checkpoints, device, reference)

    def _claim(self, argument: Callable[[str], Any]) -> None:
        """Check that nothing the run asks for is another's, or the whole process's."""
        number, claims = self.run.number, self._shared.claims
        if isinstance(self._spec, BuiltSpec):  # what of ours cannot be read is answered when the trainer is built
            check_alone(argument)
        claims.take(number, claims_of(argument, self.context.cwd))
        claims.agree(number, argument, self._shared.fabric.device.type)

    def _bases(self) -> list[Base]:
        """Return the models that the run shares with others: its base, and the reference it compares with."""
        spec = self._spec
        names = [spec.model, spec.trainer.ref_model] if isinstance(spec, TrainSpec) else []
        return [self._shared.bases.get(name) for name in names if name is not None]

    @contextlib.contextmanager
    def _leaving_bases_alone(self) -> Iterator[Stay]:
        """Look, whatever becomes of the run, whether it has changed what it shares with others; briefly where it is."""
        stay = Stay()
        try:
            yield stay
        except BaseException:
            try:
                self._check_bases()
            except RunFailed as changed:
                log.warning("%s", changed)
            raise
        if stay.is_brief and not any(base.was_written_to() for base in self._bases()):
            return
        try:
            self._check_bases()
        except Exception:
            shutil.rmtree(self.run.paths.final, ignore_errors=True)  # if that was its end: it is not to be trusted
            raise

    def _check_bases(self) -> None:
        changes = []
        for base in self._bases():
            try:
                base.check_untouched(f"Run {self.run.number}")
            except RunFailed as changed:
                changes.append(changed)
        if changes:
            raise changes[0]

    def _warm(self, trainer: Trainer, warm_start: WarmStart) -> None:
        weights = self._shared.fabric.load(warm_start.weights)["weights"]
        load_weights(trainer.model, weights, warm_start.parent)
        start_at_chunk(trainer, warm_start.first_chunk, self.run.spec.chunks)

    def _settle_activations(self, trainer: Trainer) -> Activations | None:
        """Keep activations where there is room for them, if the run leaves that to us; return what it does."""
        spec = self._spec
        if isinstance(spec, BuiltSpec):
            return None
        if not spec.chooses_activations:
            asked = activations.asked(trainer, spec.trainer.args)
            if asked.every:
                activations.keep_choice(trainer)
            return asked
        settled = self._choose_activations(trainer, spec)
        log.info("%s (%s=auto)", settled.sentence, activations.NAME)
        return settled

    def _choose_activations(self, trainer: Trainer, spec: TrainSpec) -> Activations:
        if self.run.recomputes and activations.can_recompute(trainer):
            activations.recompute(trainer, 1)
            return Activations(1, "the memory was not enough", is_chosen=True)
        batch = longest_batch(trainer)
        try:
            kept = self._shared.kept_by(spec, trainer)
        except Exception as error:  # a model that wants more than tokens
            log.info("What a forward pass keeps cannot be measured: %s: %s", type(error).__name__, error)
            kept, batch = activations.UNKNOWN, None
        trained = trained_bytes(trainer)
        need = Need.of(0 if self._shared.memory.is_unlimited else trained, trained, _optimizer(trainer))
        free = self._shared.memory.left(need.total)
        loss = 0.0 if batch is None else activations.loss_bytes(trainer, batch)
        asked = trainer.args.activation_checkpointing_kwargs or {}
        if trainer.args.device.type == "cpu" and activations.is_tight(kept, batch, loss, free):
            map_each_block()
        every = activations.choose(kept, batch, loss, free, asked)
        if every:
            activations.recompute(trainer, every)
        return activations.chosen(every, kept, batch, free)

    def _hold(self, trainer: Trainer) -> None:
        """Count what the run owns, and what its first step will add."""
        file = self.run.paths.root / ".suspended.safetensors"
        holdings = RunTensors(self._shared.fabric, own_tensors(trainer, *(base.model for base in self._bases())), file)
        own, trained = holdings.measure(), trained_bytes(trainer)
        need = Need.of(own, trained, _optimizer(trainer))
        if trainer.optimizer is not None and trainer.optimizer.state:  # it goes on, and has its state already
            need = replace(need, optimizer=0)
        self._require(need, there=own)
        holdings.coming = need.optimizer
        self.holdings = holdings

    def _require(self, need: Need, there: int = 0) -> None:
        """Refuse the run if it does not fit."""
        spec, require = self._spec, self._shared.memory.require
        if isinstance(spec, BuiltSpec):
            require(need, "Its trainer", there)
        elif spec.peft is not None:
            advice = "A smaller peft.r, fewer peft.target_modules or another trainer.args.optim needs less."
            require(need, "Training its adapter", there, advice=advice)
        else:
            advice = "An adapter (peft=lora), model.dtype=bfloat16 or a smaller model needs less."
            require(need, "Training every weight of the model", there, advice=advice)

    def _save(self, trainer: Trainer) -> None:
        # Written aside and renamed: whoever sees the folder sees all of it.
        final = self.run.paths.final
        aside = final.with_name(f".{final.name}.writing")
        try:
            trainer.save_model(str(aside))
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)  # a full disk needs the room
            raise
        shutil.rmtree(final, ignore_errors=True)
        if isinstance(self._spec, TrainSpec) and self._spec.peft is not None:
            base = self._shared.bases.get(self._spec.model)
            told = {"fingerprint": base.fingerprint, "device": self._shared.fabric.device.type}
            replace_text(self.run.paths.base, json.dumps(told) + "\n")
        os.replace(aside, final)


def _optimizer(trainer: Trainer) -> str:
    return str(getattr(trainer.args.optim, "value", trainer.args.optim))


def _keep_token_out(trainer: Trainer) -> None:
    """Keep ``hub_token`` out of ``training_args.bin``, which goes where the adapter goes: to the hub, too."""
    args, save = trainer.args, trainer._save
    if args.hub_token is None:
        return

    def save_without_token(*given: Any, **named: Any) -> None:
        token, args.hub_token = args.hub_token, None
        try:
            save(*given, **named)
        finally:
            args.hub_token = token

    trainer._save = save_without_token
