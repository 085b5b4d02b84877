"""Load what a run has left: its base, checked to be the one it was trained on, and its adapter on that."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from rfflow.config.spec import MemorySpec, ModelSpec
from rfflow.errors import ConfigError
from rfflow.runs.finished import FinishedRun
from rfflow.worker.memory.memory import Memory
from rfflow.worker.models.bases import Base
from rfflow.worker.models.loading import load_base, load_tokenizer
from rfflow.worker.training.build import rewrites_base


def load_base_of(run: FinishedRun, fabric: Fabric) -> Base:
    """Load the base model of a run's adapter onto the device.

    Raises:
        ConfigError: if it is gone, does not fit, or has other weights than the adapter was trained on.
    """
    spec, memory = required_model(run), Memory(fabric, MemorySpec())
    try:
        with quiet():  # a head that is missing is in the adapter
            model, tokenizer = load_base(spec, before=memory.require_base)
    except ConfigError as error:
        raise ConfigError(
            f"{run.label}: its base model is not to be had. {error} Where it is now: --base-model PATH"
        ) from error
    model.requires_grad_(False)
    base = Base(fabric.to_device(model.eval()), tokenizer)
    _check_base(run, base, fabric.device)
    return base


def _check_base(run: FinishedRun, base: Base, device: torch.device) -> None:
    """Check that a base has the weights that a run's adapter was trained on.

    Raises:
        ConfigError: if they are others.
    """
    known, is_quantised = run.base.get("fingerprint"), getattr(base.model, "is_quantized", False)
    if known is None or (is_quantised and run.base.get("device") != device.type):
        return  # devices may round differently when they quantise
    if base.fingerprint != known:
        name = run.model.name if run.model else "?"
        raise ConfigError(
            f"{run.label} was trained on other weights than those of {name} now (fingerprint {known[:12]} then, "
            f"{base.fingerprint[:12]} now): its adapter fits no others. Say where the old ones are: --base-model PATH"
        )


def required_model(run: FinishedRun) -> ModelSpec:
    """Return the base model of an adapter.

    Raises:
        ConfigError: if nothing says which it is.
    """
    if run.model is None:
        raise ConfigError(
            f"{run.label}: nothing says which base model its adapter belongs to. Say it: --base-model NAME"
        )
    return run.model


def with_adapter(base: Base, run: FinishedRun) -> PeftModel:
    """Return the base with a run's adapter on it, which shares the base's tensors wherever the adapter lets them be.

    Raises:
        ConfigError: if the adapter does not fit, or is damaged.
    """
    with refusals(run):
        config = PeftConfig.from_pretrained(str(run.folder))
        writes = rewrites_base(config) or getattr(config, "bias", "none") != "none"
        return load_adapter(base.copy() if writes else base.structure(), run)


def load_adapter(model: PreTrainedModel, run: FinishedRun) -> PeftModel:
    """Put a run's adapter on a model, in the precision that it was saved in.

    PEFT would give half-precision weights a float32 adapter, whatever the file holds, or the file's a bfloat16 one.
    """
    with refusals(run), quiet():
        found = PeftModel.from_pretrained(model, str(run.folder), autocast_adapter_dtype=not _is_half(run.folder))
    return found.eval()


def load_whole(run: FinishedRun, dtype: Any = "auto") -> PreTrainedModel:
    """Load the model of a run that trained every weight.

    Raises:
        ConfigError: if it cannot be loaded.
    """
    import transformers

    with refusals(run), quiet():
        names = AutoConfig.from_pretrained(str(run.folder)).architectures or []
        named = run.model.kwargs.get("auto_class") if run.model else None
        model_class = getattr(transformers, named or (names[0] if names else ""), transformers.AutoModelForCausalLM)
        return model_class.from_pretrained(str(run.folder), dtype=dtype).eval()


def tokenizer_of(run: FinishedRun) -> PreTrainedTokenizerBase:
    """Return the tokenizer that the run left beside its model.

    Raises:
        ConfigError: if there is none.
    """
    return load_tokenizer(str(run.folder), f"the tokenizer of {run.label[0].lower()}{run.label[1:]}")


@contextlib.contextmanager
def refusals(run: FinishedRun) -> Iterator[None]:
    """Turn what the libraries raise while a run's model is loaded into one sentence."""
    try:
        yield
    except ConfigError:
        raise
    except SafetensorError as error:
        raise ConfigError(f"{run.label}: a file in {run.folder} is damaged: {error}") from error
    except RuntimeError as error:
        if "size mismatch" in str(error) or "shape" in str(error):
            raise ConfigError(
                f"{run.label}: its adapter belongs to another base model than "
                f"{run.model.name if run.model else 'this one'}: {_first_mismatch(str(error))}"
            ) from error
        raise ConfigError(f"{run.label} cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        said = " ".join(str(error).split())[:300]
        raise ConfigError(f"{run.label} cannot be loaded: {type(error).__name__}: {said}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep progress bars and warnings for developers off the terminal."""
    shown = transformers_logging.is_progress_bar_enabled()
    level = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(level)
        if shown:
            transformers_logging.enable_progress_bar()


def _first_mismatch(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if "mismatch" in line and "for " in line]
    return (lines[0] if lines else " ".join(text.split()))[:240]


def _is_half(folder: Path) -> bool:
    """Whether every weight in an adapter's file has half precision."""
    file = folder / "adapter_model.safetensors"
    if not file.exists():
        return False
    with safe_open(file, "pt") as content:
        names = list(content.keys())
        kinds = {content.get_slice(name).get_dtype() for name in names}
    return bool(kinds) and kinds <= {"BF16", "F16"}
