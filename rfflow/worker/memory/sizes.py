"""How much memory things take, before they are there, and how much there is. Sizes as people write and read them."""

from __future__ import annotations

import json
import math
import re
import resource
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from huggingface_hub import try_to_load_from_cache

from rfflow.errors import ConfigError


@dataclass(frozen=True)
class Need:
    """What a run takes on the device by itself, in bytes; activations, which depend on the batch, not counted."""

    weights: int
    """Its own: an adapter, or every weight."""
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer

    @classmethod
    def of(cls, weights: int, trained: int, optim: str) -> Need:
        """Return the need of a run that owns and trains so many bytes, with an optimizer by the trainer's name."""
        return cls(weights, trained, int(trained * _STATES.get(_kind(optim), 0)))


# The optimizer's state, in bytes for a byte of the weights that it changes. Where it is not known, nothing is counted:
# what is counted must never refuse a run that fits.
_STATES = {"adamw": 2.0, "adamw_8bit": 0.5, "adagrad": 1.0, "rmsprop": 1.0, "lion": 1.0}


def _kind(optim: str) -> str:
    name = optim.removeprefix("paged_").removeprefix("schedule_free_")
    is_quantised = "8bit" in name or "4bit" in name or "bnb" in name
    return f"{name.partition('_')[0]}{'_8bit' if is_quantised else ''}"


def lora_bytes(peft: Mapping[str, Any], model: torch.nn.Module) -> int:
    """Return what the adapter of a LoRA configuration takes at least, without making it; 0 where that is not known."""
    rank, targets = peft.get("r"), peft.get("target_modules")
    if isinstance(rank, bool) or not isinstance(rank, int) or not isinstance(targets, str | list | tuple):
        return 0
    if isinstance(targets, str):
        try:
            re.compile(targets)
        except re.error:
            return 0  # who builds the adapter says so
    head = getattr(model, "get_output_embeddings", lambda: None)()
    sizes = 0
    for name, module in model.named_modules():
        if targets == "all-linear":
            is_target = module is not head
        elif isinstance(targets, str):
            is_target = re.fullmatch(targets, name) is not None
        else:
            is_target = any(name == target or name.endswith(f".{target}") for target in targets)
        if is_target and isinstance(module, torch.nn.Linear):
            sizes += module.in_features + module.out_features
    return 4 * rank * sizes


# --- models that are not loaded yet -----------------------------------------------------------------------------------


def loaded_bytes(name: str, kwargs: Mapping[str, Any]) -> int | None:
    """Return what a model's weights will take once they are loaded, from the headers of its safetensors files.

    Args:
        name: a folder, or a name on the hub whose files are in the cache.
        kwargs: what ``from_pretrained`` will be given.

    Returns:
        ``None`` where it cannot be known: other files, or none there yet.
    """
    files = _weight_files(name, kwargs)
    if not files:
        return None
    config = _read_json(_find(name, "config.json", kwargs))
    quantised = kwargs.get("quantization_config")
    bits = _bits(quantised)
    if quantised and bits is None:
        return None
    as_saved = bool(config.get("quantization_config")) or kwargs.get("dtype", "float32") == "auto"
    wanted = torch.finfo(getattr(torch, str(kwargs.get("dtype", "float32")), torch.float32)).bits / 8
    total = 0.0
    for tensor, saved, count in (entry for file in files for entry in _tensors(file)):
        size = saved if as_saved or not tensor.is_float else count * wanted
        if bits is not None and tensor.is_matrix:
            size = min(size, count * bits / 8)
        total += size
    return int(total)


@dataclass(frozen=True)
class _Kind:
    is_float: bool
    is_matrix: bool
    """A weight that quantising shrinks; embeddings and heads stay as they are."""


def _tensors(file: Path) -> Iterator[tuple[_Kind, int, int]]:
    """Yield kind, bytes and number of elements of every tensor."""
    with file.open("rb") as content:
        header = json.loads(content.read(int.from_bytes(content.read(8), "little")))
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            is_matrix = len(entry["shape"]) == 2 and not re.search(r"embed|lm_head|wte|wpe", name)
            kind = _Kind(entry["dtype"] in ("F64", "F32", "F16", "BF16"), is_matrix)
            yield kind, end - start, math.prod(entry["shape"])


def _weight_files(name: str, kwargs: Mapping[str, Any]) -> list[Path]:
    single = _find(name, "model.safetensors", kwargs)
    if single is not None:
        return [single]
    names = set(_read_json(_find(name, "model.safetensors.index.json", kwargs)).get("weight_map", {}).values())
    files = [_find(name, file, kwargs) for file in sorted(names)]
    return [file for file in files if file is not None] if None not in files else []


def _find(name: str, file: str, kwargs: Mapping[str, Any]) -> Path | None:
    if kwargs.get("subfolder") or kwargs.get("variant"):
        return None
    if Path(name).is_dir():
        return Path(name, file) if Path(name, file).is_file() else None
    try:
        found = try_to_load_from_cache(name, file, kwargs.get("cache_dir"), kwargs.get("revision"))
    except ValueError:  # no name of the hub: whoever loads it will say so
        return None
    return Path(found) if isinstance(found, str) else None


def _read_json(file: Path | None) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file is not None else {}


def _bits(quantised: Any) -> int | None:
    if quantised is None:
        return None
    settings = quantised if isinstance(quantised, Mapping) else vars(quantised)
    for bits in (4, 8):
        if settings.get(f"load_in_{bits}bit") or settings.get(f"_load_in_{bits}bit"):
            return bits
    return None


# --- what there is ----------------------------------------------------------------------------------------------------


def free_bytes(device: torch.device) -> int:
    """Return the bytes that this process can still take on the device, or on the host within its control group."""
    if device.type == "cuda":
        # What torch keeps for itself and nobody uses is as good as free.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    return int(min(psutil.virtual_memory().available, group_headroom(), process_headroom()))


def process_headroom(status: Path = Path("/proc/self/status")) -> float:
    """Return what the limits of this process (``ulimit -d``, ``ulimit -v``) leave to it; infinity without one."""
    try:
        lines = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines())
    except OSError:  # not Linux
        return math.inf
    left = math.inf
    for limit, used in ((resource.RLIMIT_DATA, "VmData"), (resource.RLIMIT_AS, "VmSize")):
        most = resource.getrlimit(limit)[0]
        if most != resource.RLIM_INFINITY and used in lines:
            left = min(left, max(0, most - 1024 * int(lines[used].split()[0])))  # in kB
    return left


def group_headroom(groups: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")) -> float:
    """Return what the control groups of this process, of version 1 or 2, leave to it; infinity without a limit.

    Containers and batch systems limit memory so, and the machine's own figures do not show it.
    """
    try:
        lines = [line.split(":", 2) for line in groups.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return math.inf
    left = math.inf
    for number, controllers, path in (line for line in lines if len(line) == 3):
        if number == "0" and not controllers:
            root, limit, usage, cached = mount, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            root, limit, usage = mount / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cached = "total_inactive_file"
        else:
            continue
        parts = Path(path.lstrip("/")).parts
        # Limits of the groups above hold too. In a container the path may be one that only the host can see.
        for depth in range(len(parts) + 1):
            left = min(left, _left(root.joinpath(*parts[:depth]), limit, usage, cached))
    return left


def _left(group: Path, limit: str, usage: str, cached: str) -> float:
    try:
        most, used = int((group / limit).read_text()), int((group / usage).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no such group, or "max"
        return math.inf
    return max(0, most - used + int(stat.get(cached, 0)))  # cached files make room when it is wanted


# --- for people -------------------------------------------------------------------------------------------------------


_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def parse_bytes(value: int | str | None, where: str) -> int:
    """Read a number of bytes such as ``512MB``, ``8 GB`` or, in powers of 1024, ``8GiB``; ``None`` is 0.

    Raises:
        ConfigError: if it is none.
    """
    if value is None:
        return 0
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(i?))?B?", str(value).strip(), re.IGNORECASE)
    if match is None:
        raise ConfigError(f"{where} is {value!r}. Allowed: bytes, such as 800000000, 800MB or 8GB.")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** _POWERS[(match[2] or "").upper()])


def show_bytes(count: float) -> str:
    """Write a number of bytes for people: ``1.3 GB``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if abs(count) < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
