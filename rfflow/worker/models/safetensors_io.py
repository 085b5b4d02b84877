"""Tensors on disk, by way of ``Fabric.save`` and ``Fabric.load``: safetensors, written aside and renamed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io import CheckpointIO
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file


class SafetensorsIO(CheckpointIO):
    """Lets Fabric write what it saves as safetensors instead of pickles.

    A checkpoint is a mapping of sections, each a flat mapping of tensors: ``{"weights": {"layer.weight": tensor}}``. A
    section that is text goes to the file's metadata, and is not read back.
    """

    def save_checkpoint(self, checkpoint: Mapping[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write the checkpoint; whoever finds the file finds all of it.

        Raises:
            OSError: if it cannot be written, the disk being full for one; what was there before is there still.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        # safetensors wants dense tensors that share no memory, which tied weights do.
        tensors = {
            f"{section}/{name}": tensor.detach().to("cpu").contiguous()
            for section, content in checkpoint.items()
            if not isinstance(content, str)
            for name, tensor in content.items()
        }
        metadata = {section: content for section, content in checkpoint.items() if isinstance(content, str)}
        seen: set[int] = set()
        for name, tensor in tensors.items():
            storage = tensor.untyped_storage().data_ptr()
            if storage in seen and tensor.numel():
                tensors[name] = tensor.clone()
            seen.add(storage)
        aside = path.with_name(f".{path.name}.writing")
        try:
            save_file(tensors, aside, metadata or None)
            os.replace(aside, path)
        except SafetensorError as error:
            raise OSError(f"{path} cannot be written: {error}") from error
        finally:
            aside.unlink(missing_ok=True)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint back.

        Raises:
            OSError: if it is not there, or is not whole.
        """
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise OSError(f"{path} cannot be read: {error}") from error
        checkpoint: dict[str, dict[str, torch.Tensor]] = {}
        for key, tensor in tensors.items():
            section, _, name = key.partition("/")
            checkpoint.setdefault(section, {})[name] = tensor
        return checkpoint

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)
