"""A run as the engine handles it: its trainer's coroutine inside its context."""

from __future__ import annotations

import os
from typing import Any

from lightning_fabric import Fabric
from transformers import Trainer

from rfflow.errors import ConfigError
from rfflow.runs import Run
from rfflow.spec import DatasetSpec
from rfflow.training.bases import Bases
from rfflow.training.build import build_trainer
from rfflow.training.context import RunContext
from rfflow.training.coroutine import Boundary, Pause, TrainerCoroutine
from rfflow.training.data import Data, load_data
from rfflow.training.models import load_base


class Workshop:
    """What runs are built from, and share: base models and data, each loaded once."""

    def __init__(self, fabric: Fabric):
        self.device = fabric.device
        self.bases = Bases(load_base, fabric.to_device)
        self._data: dict[str, Data] = {}

    def data(self, spec: DatasetSpec) -> Data:
        """Return the rows of ``spec``, reading them the first time they are asked for."""
        if spec.key not in self._data:
            self._data[spec.key] = load_data(spec)
        return self._data[spec.key]


class Trainee:
    """One run on its way from spec to adapter."""

    def __init__(self, run: Run, workshop: Workshop, *, capture_output: bool = True, hydra: Any = None):
        self.run = run
        self._workshop = workshop
        self._coroutine: TrainerCoroutine | None = None
        self.context = RunContext(workshop.device, run.paths.log, capture_output=capture_output, hydra=hydra)

    def prepare(self) -> Pause:
        """Build the trainer and take it to just before its first step.

        Raises:
            ConfigError: if the run cannot be built, naming it.
        """
        try:
            spec = self.run.spec
            base = self._workshop.bases.get(spec.model)
            data = self._workshop.data(spec.dataset)
            with self.context.active():
                trainer = build_trainer(spec, base, data, self.run.paths.checkpoints, self._workshop.device)
                self._coroutine = TrainerCoroutine(trainer, spec.chunks, evaluate=spec.evaluate, finish=self._save)
                return self._coroutine.resume()
        except ConfigError as error:
            raise ConfigError(f"Run {self.run.number} ({self.run.label}): {error}") from error

    def resume(self) -> Pause:
        """Train to the next pause.

        Raises:
            EngineError: if the run wrote to weights that it shares with others.
        """
        assert self._coroutine is not None, "prepare() comes first"
        with self.context.active():
            pause = self._coroutine.resume()
        if isinstance(pause, Boundary):
            self._workshop.bases.get(self.run.spec.model).check_untouched(f"Run {self.run.number}")
        return pause

    def close(self) -> None:
        """Let go of the trainer and what it holds."""
        if self._coroutine is not None:
            with self.context.active():
                self._coroutine.close()
            self._coroutine = None
        self.context.close()

    def _save(self, trainer: Trainer) -> None:
        # Written aside and renamed: whoever sees the folder sees all of it.
        final = self.run.paths.final
        aside = final.with_name(f".{final.name}.writing")
        trainer.save_model(str(aside))
        os.replace(aside, final)
