"""Merge an adapter into its base, by PEFT's own ``merge_and_unload``, and write the model as others load it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning_fabric import Fabric
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rfflow.config.spec import ExperimentSpec
from rfflow.errors import ConfigError
from rfflow.runs.finished import FinishedRun
from rfflow.worker.device import make_device_fabric
from rfflow.worker.finished.loading import load_base_of, load_whole, quiet, refusals, required_model, tokenizer_of
from rfflow.worker.memory.sizes import free_bytes, show_bytes


def write_whole_model(run: FinishedRun, folder: Path, dtype: str | None = None) -> list[str]:
    """Write a run's model whole into a folder, as safetensors, with tokenizer and generation config.

    Args:
        run: its adapter is merged into its base; what trained every weight is whole already.
        folder: an existing one.
        dtype: of the weights that are written; ``None`` leaves them as the run had them. The adapter is merged before
            they are converted.

    Returns:
        Sentences that whoever uses the model should know.

    Raises:
        ConfigError: if it cannot be loaded, cannot be merged, or does not fit.
    """
    tokenizer = tokenizer_of(run)
    notes: list[str] = []
    model, notes = (load_whole(run), notes) if run.adapter is None else merged(run)
    if dtype is not None and model.dtype != (wanted := getattr(torch, dtype)):
        notes.append(f"The weights were {_named(model.dtype)} and were written as {dtype}.")
        model = model.to(wanted)
    check_room(folder, sum(parameter.nbytes for parameter in model.parameters()))
    end_as_tokenizer(model, tokenizer)
    with quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return notes


def merged(run: FinishedRun) -> tuple[PreTrainedModel, list[str]]:
    """Return the base with the adapter in its weights, and what to say of that."""
    spec = required_model(run)
    notes: list[str] = []
    fabric = _fabric("auto" if "quantization_config" in spec.kwargs else "cpu")
    model = load_base_of(run, fabric).model
    if getattr(model, "is_quantized", False):
        method = type(getattr(model, "hf_quantizer", None)).__name__.removesuffix("HfQuantizer")
        _require_memory(run, sum(4 * _elements(parameter) for parameter in model.parameters()), fabric.device)
        with quiet(), refusals(run):
            model = model.dequantize()
        notes.append(
            f"The base was quantised ({method or 'by its own method'}) while the adapter was trained; it was "
            f"dequantised to {_named(model.dtype)} before the adapter was merged."
        )
    if _untie(model, run):
        notes.append(
            "The base ties its output layer to its embeddings; the adapter changes one of both, so they are two."
        )
    with refusals(run), quiet():
        # Not in the precision of the file, but as PEFT does by itself: this is what others get by merging.
        peft_model = PeftModel.from_pretrained(model, str(run.folder))
        if not hasattr(peft_model.base_model, "merge_and_unload"):
            raise ConfigError(
                f"{run.label} trained {run.method}, which has no weights to merge: it works on what the model reads. "
                "Export the adapter itself, without --merge."
            )
        whole = peft_model.merge_and_unload(safe_merge=True)  # refuses what is not finite
    return whole.eval(), notes


def end_as_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let generation stop where the run's tokenizer says that a turn ends, besides where the base stops."""
    config, end = getattr(model, "generation_config", None), getattr(tokenizer, "eos_token_id", None)
    if config is None or end is None:
        return
    ends = config.eos_token_id
    known: Sequence[int] = [] if ends is None else ends if isinstance(ends, list) else [ends]
    if end not in known:
        config.eos_token_id = [end, *known] if known else end
    if config.pad_token_id is None:
        config.pad_token_id = getattr(tokenizer, "pad_token_id", None)


def check_room(folder: Path, need: int) -> None:
    """Check that a disk has room for so many bytes.

    Raises:
        ConfigError: with the figures.
    """
    if (free := shutil.disk_usage(folder).free) < need * 1.02:
        raise ConfigError(
            f"The model takes {show_bytes(need)}, and only {show_bytes(free)} are free in {folder.parent}. Another "
            "place: --to PATH; --dtype bfloat16 takes half of float32."
        )


def _require_memory(run: FinishedRun, need: int, device: torch.device) -> None:
    if need > (free := free_bytes(device)):
        raise ConfigError(
            f"{run.label}: its base takes {show_bytes(need)} once it is dequantised, and only {show_bytes(free)} are "
            f"free on the {device.type}. Export the adapter itself, without --merge, or merge on a larger machine."
        )


def _elements(parameter: torch.nn.Parameter) -> int:
    state = getattr(parameter, "quant_state", None)  # bitsandbytes packs two weights of four bits into a byte
    return state.shape.numel() if state is not None else parameter.numel()


def _untie(model: PreTrainedModel, run: FinishedRun) -> bool:
    """Part the output layer from the embeddings where an adapter changes one of them: it would change both."""
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight is not embeddings.weight or run.adapter is None:
        return False
    if run.adapter.get("ensure_weight_tying"):
        return False
    told = [run.adapter.get(key) or () for key in ("target_modules", "modules_to_save")]
    words = {str(name).rsplit(".", 1)[-1] for names in told for name in ([names] if isinstance(names, str) else names)}
    ends = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if module in (head, embeddings)}
    if not words & ends:
        return False
    head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    model.config.tie_word_embeddings = False
    return True


def _fabric(accelerator: str) -> Fabric:
    return make_device_fabric(ExperimentSpec("export", accelerator=accelerator))


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
