"""Load a base model and its tokenizer, as TRL loads them when it is given a name.

A .gguf file counts as quantised for transformers, which neither trains nor saves it; so it is dequantised once into an
ordinary model folder in our cache, and loaded from there.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoProcessor, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging
from trl.trainer.utils import create_model_from_path

from rfflow.config.paths import cache_folder, existing_path, listing, looks_local, what_is_there
from rfflow.config.spec import ModelSpec
from rfflow.config.targets import instantiate_values
from rfflow.errors import ConfigError, nearest
from rfflow.worker.models.arguments import KEYWORDS, check_model_arguments

log = logging.getLogger(__name__)


def load_base(
    spec: ModelSpec, before: Callable[[str, Mapping[str, Any]], None] = lambda name, kwargs: None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the model and its tokenizer; the same weights, dtype, class and config as ``SFTTrainer(model=name)`` gets.

    Args:
        spec: which.
        before: called with what ``from_pretrained`` will be given, to refuse what would not fit.

    Raises:
        ConfigError: if there is no such model, or it cannot be loaded.
    """
    kwargs = instantiate_values(spec.kwargs, "model")
    check_model_arguments(kwargs)
    gguf_file = kwargs.pop("gguf_file", None)
    architecture = _architecture(kwargs.pop("auto_class", None))
    head_seed = kwargs.pop("head_seed", 0)
    where = f"{spec.where}.name"
    name = _locate(spec.name, where, gguf_file, kwargs.get("revision"))
    before(name, kwargs)
    log.info("Loading %s", spec.name)
    with _refusals(where, spec.name, name), _no_progress_bars(), torch.random.fork_rng(devices=[]):
        # On the CPU unless asked otherwise: the engine moves the model. TRL would ask accelerate's global state for
        # the device, and so set it up before any run has said what it wants there.
        given = {"architecture": architecture, "trust_remote_code": False, "device_map": None, **kwargs}
        torch.manual_seed(head_seed)  # a head that the saved model does not have is drawn
        model = create_model_from_path(name, **given)
        model.rfflow_random_state = torch.get_rng_state()
    _check_placement(model, kwargs.get("device_map"))
    hub: dict[str, Any] = {
        key: kwargs[key] for key in ("trust_remote_code", "token", "cache_dir", "revision") if key in kwargs
    }
    if spec.tokenizer is None:
        return model, _load_tokenizer(name, spec.name, where, hub)
    hub.pop("revision", None)  # the model's own
    return model, load_tokenizer(spec.tokenizer, f"{spec.where}.tokenizer", **hub)


def load_tokenizer(name: str, where: str, **hub: Any) -> PreTrainedTokenizerBase:
    """Load a tokenizer that stands alone in the configuration, by the forms in which models are named.

    Raises:
        ConfigError: if there is none.
    """
    return _load_tokenizer(_locate(name, where), name, where, hub)


def _load_tokenizer(located: str, written: str, where: str, hub: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    with _refusals(where, written, located, part="tokenizer"), _no_progress_bars():
        return AutoProcessor.from_pretrained(located, **hub)


def _check_placement(model: torch.nn.Module, device_map: Any) -> None:
    """Runs take turns on one device, and share the model's tensors there: no part of it may be anywhere else."""
    places = sorted({str(place) for place in getattr(model, "hf_device_map", {}).values()})
    is_offloaded = any(tensor.is_meta for tensor in model.parameters())
    if len(places) > 1 or is_offloaded or any(hasattr(module, "_hf_hook") for module in model.modules()):
        raise ConfigError(
            f"model.device_map is {device_map!r}, which puts the model on {' and '.join(places) or 'no device'}. Runs "
            "take turns on one device, and the whole model must be there. Leave model.device_map out (engine.device "
            "says which GPU); a model that does not fit may in four bits: model=qlora."
        )


def _architecture(auto_class: str | None) -> Any:
    """Return the class that ``model.auto_class`` names; without one, the class that the model was saved from."""
    if auto_class is None:
        return None
    known = [name for name in dir(transformers) if name.startswith("AutoModel")]
    if auto_class not in known:
        raise ConfigError(
            f"model.auto_class is {auto_class!r}.{nearest(auto_class, known)} Allowed: a class of transformers whose "
            "name begins with AutoModel, such as AutoModelForSequenceClassification."
        )
    return getattr(transformers, auto_class)


def _locate(name: str, where: str, gguf_file: str | None = None, revision: str | None = None) -> str:
    """Return what ``from_pretrained`` can load: a hub name as it is, or a folder with a config."""
    if gguf_file is None and not looks_local(name):
        return name
    path = _find_gguf(name, where, gguf_file, revision) if gguf_file else existing_path(name, where)
    if path.is_file():
        if path.suffix != ".gguf":
            raise ConfigError(f"{where} is {name!r}, a file. Give the model's folder, or a .gguf file.")
        return str(converted(path))
    _check_folder(path, name, where)
    return name if Path(name).is_dir() else str(path)  # as written: it goes into the adapter's config


def _find_gguf(name: str, where: str, gguf_file: str, revision: str | None) -> Path:
    if looks_local(name):
        return existing_path(f"{name.rstrip('/')}/{gguf_file}", f"{where} with model.gguf_file")
    from huggingface_hub import hf_hub_download

    with _refusals(where, name, name):
        return Path(hf_hub_download(name, gguf_file, revision=revision))


def _check_folder(folder: Path, name: str, where: str) -> None:
    if (folder / "config.json").exists() or (not where.endswith(".name") and (folder / "tokenizer.json").exists()):
        return
    if (folder / "adapter_config.json").exists():
        base = json.loads((folder / "adapter_config.json").read_text()).get("base_model_name_or_path")
        raise ConfigError(
            f"{where} is {name!r}, a PEFT adapter and not a whole model. It was trained on {base!r}: "
            "give that, or merge the adapter into it first (PeftModel.merge_and_unload)."
        )
    names = sorted(entry.name for entry in folder.iterdir())
    models = [entry for entry in names if entry.endswith(".gguf") or (folder / entry / "config.json").exists()]
    hint = f" Did you mean {str(Path(name) / models[0])!r}?" if models else ""
    raise ConfigError(
        f"{where} is {name!r}, a folder without a config.json, so not a model.{hint} In it: {listing(names)}."
    )


@contextlib.contextmanager
def _refusals(where: str, written: str, loaded: str, part: str = "model") -> Iterator[None]:
    """Turn what the libraries raise into one sentence."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # tokenizers raises bare ones
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if isinstance(error, TypeError) and unknown:
            key = unknown[1]
            raise ConfigError(
                f"model.{key} is not an argument of from_pretrained nor a field of the model's config."
                f"{nearest(key, {*KEYWORDS, *_config_fields(loaded)})} Arguments: {', '.join(KEYWORDS)}."
            ) from error
        if isinstance(error, ImportError) and "bitsandbytes" in str(error):
            raise ConfigError(
                "model.quantization_config needs bitsandbytes, which is not installed: pip install 'rfflow[qlora]'"
            ) from error
        if "attn_implementation" in str(error) or "FlashAttention" in str(error):
            raise ConfigError(
                f"model.attn_implementation cannot be: {_reason(error)} Leave it out for what suits the model."
            ) from error
        if any(hint in str(error) for hint in ("device_map", "accelerator device", "CUDA enabled", "device ordinal")):
            raise ConfigError(
                f"model.device_map cannot be: {_reason(error)} Leave it out: the model goes to the device that "
                "engine.accelerator and engine.device say."
            ) from error
        if looks_local(loaded):
            raise ConfigError(
                f"{where} is {written!r}: cannot load the {part}. {_reason(error)}{_hint(error, part)}"
            ) from error
        there = what_is_there(Path(written)) if "/" in written and Path(written).parent.is_dir() else ""
        raise ConfigError(
            f"{where} is {written!r}: no such folder here, and the Hugging Face hub does not give the {part}.{there} "
            f"{_reason(error, sentences=1)} Check the name and the network (HF_HUB_OFFLINE must not be 1), "
            "or give a local folder."
        ) from error


def _reason(error: Exception, sentences: int = 3) -> str:
    text = " ".join(re.split(r"(?<=[.!?])\s", " ".join(str(error).split()))[:sentences])
    return f"{type(error).__name__}: {text.rstrip('.!')}."


def _hint(error: Exception, part: str) -> str:
    if isinstance(error, SafetensorError):
        return " Is a file there truncated?"
    if isinstance(error, TypeError):
        return " Does its config.json name the architectures?"
    return " Are its files (tokenizer.json, ...) there and whole?" if part == "tokenizer" else ""


def _config_fields(name: str) -> list[str]:
    file = Path(name) / "config.json"
    return list(json.loads(file.read_text())) if file.exists() else []


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


# --- GGUF -------------------------------------------------------------------------------------------------------------


def converted(file: Path) -> Path:
    """Return the folder with the dequantised model of a .gguf file, made now if it is not in the cache.

    The weights are kept in float32: a dequantised weight is scale * level + offset of float16 numbers, which neither
    float16 nor bfloat16 can hold (of SmolLM2's Q4_1 weights, 52 % and 18 % survive). Twice the disk buys the same
    numbers as transformers' own dequantisation.

    Raises:
        ConfigError: if the file is not a model that transformers can read.
    """
    if importlib.util.find_spec("gguf") is None:
        raise ConfigError(f"{file} is a GGUF file, and the library to read it is missing: pip install 'rfflow[gguf]'")
    folder = cache_folder("models") / f"{file.stem}-{_identity(file)}"
    # The lock is for a second process; the partial folder and the rename are for a kill at any moment. Whoever holds
    # the lock may sweep up what a killed process left.
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            partial = folder.with_name(f"{folder.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            try:
                _convert(file, partial)
            except Exception as error:  # four libraries take part, and one of them raises bare exceptions
                shutil.rmtree(partial, ignore_errors=True)
                raise ConfigError(
                    f"{file} cannot be read as a GGUF model. {_reason(error)} Is the file complete?"
                ) from error
            partial.rename(folder)
    return folder


def _identity(file: Path) -> str:
    """Change with the file's content, not its date or place, and with the libraries that read it."""
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256")
    for library in ("transformers", "gguf"):
        digest.update(f"{library} {importlib.metadata.version(library)}".encode())
    return digest.hexdigest()[:16]


def _convert(file: Path, folder: Path) -> None:
    seconds = 5 + file.stat().st_size / 10e6
    log.info("Converting %s once, about %.0f s; kept in %s", file.name, seconds, folder.parent)
    source: dict[str, Any] = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    # transformers shows bars of its own here that cannot be switched off otherwise.
    with _no_progress_bars(), contextlib.redirect_stderr(io.StringIO()):
        quantised = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(**source)
        config = quantised.config
        del config.quantization_config
        config.__dict__.pop("_model_name_or_path", None)  # the name it had with its maker
        # The loaded model remembers that it is quantised in more places than its config: a fresh one does not. Its
        # weights are never made, since only its state is saved.
        with torch.device("meta"):
            fresh = type(quantised)(config)
        fresh.generation_config = quantised.generation_config
        fresh.save_pretrained(folder, state_dict=quantised.state_dict())
        tokenizer.save_pretrained(folder)
