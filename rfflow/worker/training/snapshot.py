"""A suspended trainer as files, and back: what Hugging Face's own resume reads, and what it forgets.

The folder is what ``trainer.train(resume_from_checkpoint=...)`` takes. Hugging Face starts the running loss, TRL's
running metrics and the callbacks' counters anew; that would change the log, so they are in a file of ours beside it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from peft.utils import CONFIG_NAME
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState

from rfflow.worker.training.warm_start import trained_weights

EXTRAS = "rfflow_trainer.json"
TRAINED = "rfflow_trained.safetensors"
"""Weights that PEFT does not count as the adapter's; in most checkpoints there is no such file."""

# Numbers that a trainer's loop (or TRL) keeps to itself.
_NUMBERS = (
    "_total_loss_scalar",
    "_globalstep_last_logged",
    "_initial_global_step",
    "_initial_num_input_tokens_seen",
    "current_flos",
    "_total_train_tokens",
    "_step",
)


Names = dict[tuple[str, ...], Mapping[str, str]]
"""What weights are called in the file of an adapter, by those weights' own names."""


class Snapshots:
    """Takes snapshots of one trainer."""

    def __init__(self, trainer: Trainer, ours: TrainerCallback):
        """Take none yet.

        Args:
            trainer: whom they are of.
            ours: the callback that suspends it; all that counts of it is where the chunk began.
        """
        self._trainer = trainer
        self._ours = ours
        self.names: Names = {}
        """What the trained weights are called in the adapter's file; asking PEFT takes longer than all the rest."""
        self._config: tuple[dict[str, Any], str] = {}, ""
        """The adapter's configuration when it was last written, and its file."""

    def take(self, folder: Path, trained: Mapping[str, torch.Tensor] | None = None) -> Callable[[], None]:
        """Write what is small of the suspended trainer, and return what writes the rest.

        Call it inside the run's context; the function it returns may be called anywhere, from another thread too, as
        long as the trainer stays suspended and its tensors where they are.

        Args:
            folder: an empty folder. The trainer stands where a resume is exact: behind the fetch of a batch, or
                between two epochs.
            trained: the weights that are trained, by name, where they are known.
        """
        trainer, model = self._trainer, self._trainer.model
        trainer._save_rng_state(str(folder))
        trainer._save_scaler(str(folder))
        torch.save(trainer.lr_scheduler.state_dict(), folder / "scheduler.pt")
        _write_json(folder / "trainer_state.json", _trainer_state(trainer))
        _write_json(folder / EXTRAS, _extras(trainer, self._ours))
        apart: Mapping[str, torch.Tensor] = {}
        if isinstance(model, PeftModel):
            adapter = model.active_adapters[0]
            self._write_config(model.peft_config[adapter], folder / CONFIG_NAME)
            weights_file = folder / "adapter_model.safetensors"
            trained = trained_weights(model) if trained is None else trained
            weights = self._adapter(model, adapter, trained)
            if _size(weights) < _size(trained):
                apart = trained
        else:
            weights = model.state_dict()
            if hasattr(model, "config"):
                model.config.save_pretrained(str(folder))
            weights_file = folder / "model.safetensors"
        optimizer = trainer.optimizer.state_dict()

        def write_tensors() -> None:
            save_file(_separate(weights), weights_file, metadata={"format": "pt"})
            if apart:
                save_file(_separate(apart), folder / TRAINED)
            torch.save(optimizer, folder / "optimizer.pt")

        return write_tensors

    def _write_config(self, config: PeftConfig, file: Path) -> None:
        settings, text = self._config
        if text and settings == vars(config):
            file.write_text(text, encoding="utf-8")
            return
        settings = copy.deepcopy(vars(config))
        copy.copy(config).save_pretrained(str(file.parent))
        self._config = settings, file.read_text(encoding="utf-8")

    def _adapter(self, model: PeftModel, adapter: str, trained: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the adapter as PEFT saves it."""
        if (names := self.names.get(tuple(trained))) is not None:
            return {name: trained[own].detach() for own, name in names.items()}
        # Embeddings only where they are the adapter's: by default PEFT asks the hub each time whether they grew.
        weights = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
        own_names = {_place(tensor): own for own, tensor in trained.items()}
        is_same = {_place(tensor) for tensor in weights.values()} == own_names.keys()
        if is_same and len(own_names) == len(trained) == len(weights):
            self.names[tuple(trained)] = {own_names[_place(tensor)]: name for name, tensor in weights.items()}
        return weights


def load_adapter_as_it_is(model: Any) -> None:
    """Let the adapter that is loaded next be of the type that it was saved in.

    Hugging Face's resume lets PEFT widen adapters to float32. TRL has made those of a quantised model bfloat16: such a
    run would go on as another one, in memory too.
    """
    if not isinstance(model, PeftModel):
        return

    def load(*args: Any, **kwargs: Any) -> Any:
        del model.load_adapter
        return model.load_adapter(*args, **{"autocast_adapter_dtype": False, **kwargs})

    model.load_adapter = load


def restore_forgotten(trainer: Trainer, folder: Path, ours: TrainerCallback) -> None:
    """Give a trainer that resumes from ``folder`` what Hugging Face's resume leaves out.

    Call it when training is about to begin, behind the loop's own first assignments.
    """
    extras = json.loads((folder / EXTRAS).read_text(encoding="utf-8"))
    for name, value in extras["numbers"].items():
        setattr(trainer, name, value)
    trainer._tr_loss.fill_(extras["tr_loss"])
    if extras["chunk_began"] is not None:
        ours.chunk_began = tuple(extras["chunk_began"])
    for mode, metrics in (extras["metrics"] or {}).items():
        trainer._metrics[mode].clear()
        for name, values in metrics.items():
            trainer._metrics[mode][name] = values
    for callback, attributes in zip(_users_callbacks(trainer, ours), extras["callbacks"], strict=True):
        for name, value in attributes.items():
            setattr(callback, name, value)
    if (folder / TRAINED).exists():
        saved = load_file(folder / TRAINED)
        with torch.no_grad():
            for name, parameter in trained_weights(trainer.model).items():
                parameter.copy_(saved[name])


def _trainer_state(trainer: Trainer) -> dict[str, Any]:
    # As Hugging Face writes it, from a copy: the run must not notice that it was saved.
    content = {field.name: getattr(trainer.state, field.name) for field in fields(trainer.state)}
    callbacks: dict[str, Any] = {}
    for callback in [*trainer.callback_handler.callbacks, trainer.control]:
        if isinstance(callback, ExportableState):
            name, state = type(callback).__name__, callback.state()
            if name in callbacks:
                before = callbacks[name]
                callbacks[name] = [*before, state] if isinstance(before, list) else [before, state]
            else:
                callbacks[name] = state
    content["stateful_callbacks"] = callbacks
    return content


def _extras(trainer: Trainer, ours: TrainerCallback) -> dict[str, Any]:
    metrics = getattr(trainer, "_metrics", None)
    return {
        "numbers": {name: getattr(trainer, name) for name in _NUMBERS if hasattr(trainer, name)},
        "tr_loss": trainer._tr_loss.item(),
        "chunk_began": getattr(ours, "chunk_began", None),
        "metrics": metrics,
        "callbacks": [_attributes(callback) for callback in _users_callbacks(trainer, ours)],
    }


def _users_callbacks(trainer: Trainer, ours: TrainerCallback) -> list[TrainerCallback]:
    """Return the callbacks with a memory that counts; not those that only show, or report elsewhere."""
    return [
        callback
        for callback in trainer.callback_handler.callbacks
        if isinstance(callback, ExportableState)
        or not (callback is ours or type(callback).__module__.startswith(("transformers.", "trl.")))
    ]


def _attributes(callback: TrainerCallback) -> dict[str, Any]:
    if isinstance(callback, ExportableState):
        return dict(callback.state().get("attributes", {}))
    return {name: value for name, value in vars(callback).items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return type(value) is dict and all(isinstance(k, str) and _is_plain(v) for k, v in value.items())
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def _separate(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors as safetensors wants them: on the host, dense, and none sharing memory, which tied weights do."""
    separate: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().to("cpu").contiguous()
        storage = tensor.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != tensor.numel() * tensor.element_size():
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        separate[name] = tensor
    return separate


def _place(tensor: torch.Tensor) -> tuple[int, torch.Size, tuple[int, ...]]:
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def _size(tensors: Mapping[str, torch.Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors.values())


def _write_json(path: Path, content: Any) -> None:
    # On one line: with an indent Python's own encoder would write it, which is ten times as slow, and logs grow long.
    path.write_text(json.dumps(content, default=_number) + "\n", encoding="utf-8")


def _number(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)
