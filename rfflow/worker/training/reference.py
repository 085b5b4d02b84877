"""The reference that a preference trainer compares with: loaded once, and asked once for all runs.

With ``precompute_ref_log_probs`` TRL keeps the reference's log-probabilities in a file named after the model's weights
and the way in which the rows came about. Those weights include the adapter, which the reference does not have and which
no two runs share, and the rows came about with all of the run's arguments; but what shapes a batch is not in the name.
:func:`shared_log_probs` names the file after all that the log-probabilities depend on, and nothing else, so that runs
find each other's.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
from datasets import Dataset
from datasets.fingerprint import Hasher
from transformers import Trainer, TrainingArguments

from rfflow.worker.models.bases import Base

# Beside the tokens: what else has a part in the numbers, to the last bit.
_SHAPING = (
    "max_length",
    "truncation_mode",
    "padding_free",
    "pad_to_multiple_of",
    "ld_alpha",
    "precompute_ref_batch_size",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "disable_dropout",
    "bf16",
    "fp16",
    "tf32",
    "use_cpu",
)


@contextlib.contextmanager
def shared_log_probs(trainer_class: type[Trainer], args: TrainingArguments, reference: Base | None) -> Iterator[None]:
    """Let trainers that are built inside share the log-probabilities of ``reference``, if there is one to share."""
    owner: Any = next((cls for cls in trainer_class.__mro__ if "_precompute_ref_logps" in vars(cls)), None)
    if reference is None or owner is None or not getattr(args, "precompute_ref_log_probs", False):
        yield
        return
    module: Any = sys.modules[owner.__module__]
    compute = owner._precompute_ref_logps

    def compute_or_find(self: Trainer, dataset: Dataset, *given: Any, **named: Any) -> Any:
        before = torch.random.get_rng_state()
        if isinstance(dataset, Dataset):
            dataset = copy.copy(dataset)
            dataset._fingerprint = _digest(dataset)
        found = compute(self, dataset, *given, **named)
        if torch.equal(before, torch.random.get_rng_state()):
            # It was in the file. A data loader that computes it draws one number; so the run goes on as it would alone.
            torch.empty((), dtype=torch.int64).random_()
        return found

    hash_module = module.hash_module
    module.hash_module = lambda _: _key(args, reference)
    owner._precompute_ref_logps = compute_or_find
    try:
        yield
    finally:
        module.hash_module = hash_module
        owner._precompute_ref_logps = compute


def _digest(rows: Dataset) -> str:
    """Hash the rows themselves, for ``datasets`` names them after how they were made."""
    digest = hashlib.sha256(" ".join(rows.column_names).encode())
    for batch in rows.with_format("arrow").iter(1000):
        digest.update(Hasher.hash(batch.to_pydict()).encode())
    return digest.hexdigest()[:32]


def _key(args: TrainingArguments, reference: Base) -> str:
    values = {name: getattr(args, name, None) for name in _SHAPING}
    if values["precompute_ref_batch_size"]:
        del values["per_device_train_batch_size"], values["per_device_eval_batch_size"]
    return hashlib.sha256(f"{reference.digest} {sorted(values.items())}".encode()).hexdigest()
