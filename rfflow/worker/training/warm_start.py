"""A clone that goes on from its parent's weights, on the chunk after its parent's last."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, Sampler
from transformers import Trainer

from rfflow.errors import OpError
from rfflow.runs.chunks import chunk_ends
from rfflow.worker.training.generation_cycles import cycle_steps


def trained_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights that training changes, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def all_finite(weights: Mapping[str, torch.Tensor]) -> bool:
    """Return whether every weight is a number."""
    # What is no number shows in the sum too, which is quicker, and the device is waited for once.
    with torch.no_grad():
        sums = [weight.sum(dtype=torch.float32) for weight in weights.values()]
        if len({one.device for one in sums}) > 1:
            sums = [one.to(sums[0].device) for one in sums]
        if not sums or bool(torch.stack(sums).isfinite().all()):
            return True
    return all(bool(torch.isfinite(weight).all()) for weight in weights.values())  # many large ones overflow


def load_weights(model: torch.nn.Module, weights: Mapping[str, torch.Tensor], parent: int) -> None:
    """Copy a parent's weights into the model of its clone.

    Raises:
        OpError: naming the first difference, if the two do not have the same architecture, adapters included. Nothing
            has been copied then.
    """
    own = trained_weights(model)
    for name in [*weights, *own]:
        difference = None
        if name not in own:
            difference = f"{name} {_shape(weights[name])} is trained by run {parent} and not by the clone"
        elif name not in weights:
            difference = f"{name} {_shape(own[name])} is trained by the clone and not by run {parent}"
        elif weights[name].shape != own[name].shape:
            difference = f"{name} is {_shape(weights[name])} in run {parent} and {_shape(own[name])} in the clone"
        if difference:
            raise OpError(
                f"A warm start needs the architecture of run {parent}, adapters included: {difference}. "
                "Clone it without warm_start, or leave the model, peft.r and peft.target_modules as they are."
            )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(weights[name])


def start_at_chunk(trainer: Trainer, first_chunk: int, chunks: int) -> None:
    """Let each epoch of ``trainer`` begin with chunk ``first_chunk`` of the order its own sampler gives.

    Must be called before ``trainer.train()``.

    Raises:
        OpError: if the rows come as a stream, which cannot be begun in the middle and wrapped round.
    """
    if first_chunk == 0:
        return
    # Torch's may have a length and is none the less read from its beginning; that of datasets is not one of torch's.
    if isinstance(trainer.train_dataset, IterableDataset) or not hasattr(trainer.train_dataset, "__len__"):
        raise OpError(
            f"A warm start goes on behind the parent's last chunk, here with chunk {first_chunk + 1} of {chunks}, and "
            f"the rows come as a stream ({type(trainer.train_dataset).__name__}), which has no middle to begin in. "
            "Clone it without warm_start, or give the trainer a data set with a length."
        )
    make_dataloader = trainer.get_train_dataloader

    def rotated() -> DataLoader[Any]:
        dataloader = make_dataloader()
        accumulation = trainer.args.gradient_accumulation_steps
        steps = -(-len(dataloader) // accumulation)
        if chunks > -(-steps // cycle_steps(trainer.args)):
            return dataloader  # refused as soon as training begins
        first_step = chunk_ends(steps, chunks, steps, cycle_steps(trainer.args))[first_chunk - 1]
        batches = dataloader.batch_sampler
        # Below accelerate's wrapping: this is the sampler whose order the parent saw too.
        batches = getattr(batches, "batch_sampler", batches)
        batches.sampler = Rotated(batches.sampler, first_step * accumulation * batches.batch_size)
        return dataloader

    trainer.get_train_dataloader = rotated


class Rotated(Sampler[int]):
    """Another sampler's order, begun in the middle and wrapped round."""

    def __init__(self, sampler: Sampler[int], offset: int):
        self.sampler = sampler
        self.offset = offset

    def __iter__(self) -> Iterator[int]:
        order = list(self.sampler)
        return iter(order[self.offset :] + order[: self.offset])

    def __len__(self) -> int:
        return len(self.sampler)  # type: ignore[arg-type]

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch on."""
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(str(size) for size in tensor.shape) or "a number"
