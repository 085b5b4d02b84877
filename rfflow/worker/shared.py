"""What the runs on one device share: base models, data, memory."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from datasets import Dataset
from lightning_fabric import Fabric
from transformers import Trainer

from rfflow.confidential import redacted
from rfflow.config.claims import Claims
from rfflow.config.spec import DatasetSpec, MemorySpec, TrainerSpec, TrainSpec
from rfflow.config.targets import import_object
from rfflow.evals.quotas import Quotas
from rfflow.runs.owner import SECTION
from rfflow.runs.run import RunCard
from rfflow.worker.data.preparing import alone_with
from rfflow.worker.data.rows import Data, fingerprint, load_data
from rfflow.worker.memory.memory import Memory
from rfflow.worker.models.bases import Bases
from rfflow.worker.models.loading import load_base
from rfflow.worker.training import activations
from rfflow.worker.training.described import described
from rfflow.worker.training.first_evaluation import FirstEvaluations
from rfflow.worker.training.snapshot import Names

log = logging.getLogger(__name__)

T = TypeVar("T")

_SIZES = ("r", "lora_alpha", "lora_dropout", "use_rslora")
"""What of an adapter's configuration names none of its weights."""


class Shared:
    """What runs are built from, and share: the device, base models and data, each loaded once."""

    def __init__(self, fabric: Fabric, memory: MemorySpec, seed: int, sharers: int = 1):
        """Share nothing yet; ``sharers`` workers, this one among them, have the device's memory."""
        self.fabric = fabric
        self.seed = seed
        """Draws what all runs have alike."""
        self.memory = Memory(fabric, memory, sharers=sharers)
        self.bases = Bases(functools.partial(load_base, before=self.memory.require_base), fabric.to_device)
        self.claims = Claims()
        self.first_evaluations = FirstEvaluations()
        self.quotas = Quotas()
        """What the servers allow that runs ask."""
        self._data: dict[str, Data] = {}
        self._rows_of_apps: dict[int, str] = {}
        """Fingerprints of the rows that apps have built trainers with, by run."""
        self._fingerprints: dict[str, str] = {}
        """What was looked at, by what was asked for or by what ``datasets`` calls it."""
        self._said: set[str] = set()
        self._described: set[str] = set()
        self._kept: dict[str, activations.Kept | None] = {}
        self._made: dict[str, Any] = {}

    def data(self, spec: DatasetSpec, trainer: TrainerSpec) -> Data:
        """Return the rows of ``spec`` for a trainer of that kind, reading them the first time they are asked for."""
        key = f"{trainer.target} {spec.key}"
        if key not in self._data:
            with alone_with(key):  # another worker may be reading the same files, and leaves what it made of them
                self._data[key] = load_data(spec, self.seed, trainer)
        return self._data[key]

    def kept_by(self, spec: TrainSpec, trainer: Trainer) -> activations.Kept | None:
        """Return what a forward pass of a run keeps; it is measured once for all that differ in other things."""
        args = trainer.args
        key = json.dumps([repr(spec.model), spec.peft, args.bf16, args.fp16], sort_keys=True, default=str)
        if key not in self._kept:
            self._kept[key] = activations.measure(trainer)
        return self._kept[key]

    def adapter_names(self, spec: TrainSpec) -> Names:
        """Return what weights are called in the file of a run's adapter, as far as any run like it has asked."""
        alike = {key: value for key, value in (spec.peft or {}).items() if key not in _SIZES}
        key = json.dumps([repr(spec.model), spec.trainer.target, alike], sort_keys=True, default=str)
        return self.made_once(f"names {key}", dict)

    def made_once(self, key: str, make: Callable[[], T]) -> T:
        """Return what was made under a key the first time that it was asked for."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def say(self, lines: Iterable[str]) -> None:
        """Warn of something once, however many runs it holds for."""
        for line in lines:
            if line not in self._said:
                self._said.add(line)
                log.warning("%s", line)

    def untold_arguments(self, spec: TrainSpec) -> dict[str, dict[str, Any]]:
        """Return what the classes of a run's configuration take, each class once."""
        targets = [spec.trainer.args_target, *([] if spec.peft is None else [str(spec.peft["_target_"])])]
        untold = [target for target in targets if target not in self._described]
        self._described.update(untold)
        return {target: described(import_object(target, "_target_")) for target in untold}

    def has_bases(self, spec: TrainSpec) -> bool:
        """Whether the models that a run of ours shares are loaded."""
        return all(self.bases.has(model) for model in (spec.model, spec.trainer.ref_model) if model is not None)

    def saving_weights(self, run: RunCard, step: int, weights: Mapping[str, torch.Tensor]) -> Callable[[], None]:
        """Return what writes the weights that a run has at a step to their file, which says whose they are."""
        content: dict[str, Any] = {"weights": weights}
        if run.owner is not None:
            content[SECTION] = json.dumps(run.owner.label(step))
        return functools.partial(self.fabric.save, run.paths.weights, content)

    def fingerprints(self) -> dict[str, str]:
        """Return a fingerprint of the rows of every data set that was read."""
        for key, data in self._data.items():
            if key not in self._fingerprints:
                self._fingerprints[key] = fingerprint(data)
        rows = {f"of run {number}": rows for number, rows in self._rows_of_apps.items()}
        return rows | {redacted(key): self._fingerprints[key] for key in self._data}

    def note_rows(self, number: int, trainer: Trainer) -> None:
        """Take the fingerprint of rows that an app has read itself; of a stream there is none."""
        rows = trainer.train_dataset
        if isinstance(rows, Dataset):
            known = rows._fingerprint  # runs that were built from the same rows in the same way are looked at once
            if known not in self._fingerprints:
                self._fingerprints[known] = fingerprint(Data(rows))
            self._rows_of_apps[number] = self._fingerprints[known]
