"""torch's process-wide settings: what a run may set for itself, and others must not get.

Read and set by :mod:`rfflow.worker.training.context` at every switch, so each takes a microsecond or less.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

Setting = tuple[Callable[[], Any], Callable[[Any], None]]


def read_torch_settings() -> dict[str, Any]:
    """Return all of them by name."""
    return {name: read() for name, (read, _) in _SETTINGS.items()}


def set_torch_settings(wanted: Mapping[str, Any], seen: Mapping[str, Any]) -> None:
    """Set those that differ from what is ``seen``."""
    for name, (_, write) in _SETTINGS.items():
        if wanted[name] != seen[name] or name == "forms":  # those are changed where they are
            write(wanted[name])


def of_a_new_run(outer: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run begins with: all as it is outside, and nothing compiled yet."""
    return {**outer, "compile": _compile_alone if _CAN_ISOLATE else torch.compile, "forms": (None, None)}


_compile = torch.compile
_CAN_ISOLATE = "isolate_recompiles" in inspect.signature(torch.compile).parameters


@functools.wraps(torch.compile)
def _compile_alone(*args: Any, **kwargs: Any) -> Any:
    """Compile for one run.

    torch compiles a function in so many forms (8) for the whole process and then leaves it as it is, so that the ninth
    run would not be compiled; and a run would be given a form that suits another's shapes, which rounds otherwise.
    """
    compiled = _compile(*args, **{"isolate_recompiles": True, **kwargs})
    limits: Any = sys.modules["torch._dynamo.config"]
    limits.accumulated_recompile_limit += limits.recompile_limit  # which is for all of them together
    return compiled


def _read_forms() -> tuple[Any, Any]:
    """Return which sizes torch has seen to change: it compiles for any size from the second one on."""
    profile = sys.modules.get("torch._dynamo.pgo")
    return getattr(profile, "_CODE_STATE", None), getattr(profile, "_INIT_CODE_STATE", None)


def _set_forms(value: tuple[Any, Any]) -> None:
    profile: Any = sys.modules.get("torch._dynamo.pgo")
    if profile is not None:
        profile._CODE_STATE, profile._INIT_CODE_STATE = value


def _attribute(owner: Any, name: str) -> Setting:
    return lambda: getattr(owner, name), lambda value: setattr(owner, name, value)


def _autocast(device: str) -> Setting:
    def write(value: tuple[bool, torch.dtype]) -> None:
        torch.set_autocast_enabled(device, value[0])
        torch.set_autocast_dtype(device, value[1])

    return lambda: (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)), write


def _set_deterministic(value: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(value[0], warn_only=value[1])


def _set_default_device(device: torch.device) -> None:
    # Even the CPU, where it is set, costs a detour through Python in every function that makes a tensor.
    torch.set_default_device(None if device.type == "cpu" else device)


@dataclass(frozen=True)
class _Precision:
    """How exactly products of float32 are computed: what was set of torch's tree of settings, and its older names."""

    set_at: tuple[str, ...]
    """At each place of the tree; "none" where it is left to the place above."""
    matmul: str
    cudnn_tf32: bool


_CUDA = torch.backends.cuda

_PLACES = (
    ("generic", "all"),
    ("cuda", "all"),
    ("mkldnn", "all"),
    ("cuda", "matmul"),
    ("cuda", "conv"),
    ("cuda", "rnn"),
    ("mkldnn", "matmul"),
    ("mkldnn", "conv"),
    ("mkldnn", "rnn"),
)
"""Each behind the one above it in the tree."""
_HAS_TREE = hasattr(torch._C, "_get_fp32_precision_getter")


def _read_precision() -> _Precision:
    """Read it place by place, each with nothing set above it: a place that is left open shows what is set there.

    The older names raise where tree and name have come to disagree, as ``trainer.args.tf32`` makes them do, so they
    are read from an empty tree.
    """
    if not _HAS_TREE:
        return _Precision((), torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)
    get, put = torch._C._get_fp32_precision_getter, torch._C._set_fp32_precision_setter
    found = []
    for place in _PLACES:
        found.append(get(*place))
        put(*place, "none")
    matmul = torch.get_float32_matmul_precision()
    put("cuda", "conv", "tf32")
    put("cuda", "rnn", "tf32")
    try:
        cudnn_tf32 = torch._C._get_cudnn_allow_tf32()
    except RuntimeError:  # the tree says yes now, so the older name says no
        cudnn_tf32 = False
    for place, precision in zip(_PLACES, found, strict=True):
        put(*place, precision)
    return _Precision(tuple(found), matmul, cudnn_tf32)


def _set_precision(value: _Precision) -> None:
    torch.set_float32_matmul_precision(value.matmul)
    torch._C._set_cudnn_allow_tf32(value.cudnn_tf32)
    for place, precision in zip(_PLACES, value.set_at, strict=False):  # which the two above have written to as well
        torch._C._set_fp32_precision_setter(*place, precision)


_SETTINGS: dict[str, Setting] = {
    "grad": (torch.is_grad_enabled, lambda value: torch._C._set_grad_enabled(value)),
    "anomaly": (torch.is_anomaly_enabled, torch.set_anomaly_enabled),
    "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "default device": (torch.get_default_device, _set_default_device),
    "threads": (torch.get_num_threads, torch.set_num_threads),
    "deterministic": (
        lambda: (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        _set_deterministic,
    ),
    "fill uninitialized": _attribute(torch.utils.deterministic, "fill_uninitialized_memory"),
    "precision": (_read_precision, _set_precision),
    "cudnn": _attribute(torch.backends.cudnn, "enabled"),
    "cudnn deterministic": _attribute(torch.backends.cudnn, "deterministic"),
    "cudnn benchmark": _attribute(torch.backends.cudnn, "benchmark"),
    "fp16 reduction": _attribute(_CUDA.matmul, "allow_fp16_reduced_precision_reduction"),
    "bf16 reduction": _attribute(_CUDA.matmul, "allow_bf16_reduced_precision_reduction"),
    "flash attention": (_CUDA.flash_sdp_enabled, _CUDA.enable_flash_sdp),
    "efficient attention": (
        torch.backends.cuda.mem_efficient_sdp_enabled,
        _CUDA.enable_mem_efficient_sdp,
    ),
    "math attention": (_CUDA.math_sdp_enabled, _CUDA.enable_math_sdp),
    "cudnn attention": (_CUDA.cudnn_sdp_enabled, _CUDA.enable_cudnn_sdp),
    "autocast cache": (torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled),
    "autocast cpu": _autocast("cpu"),
    "autocast cuda": _autocast("cuda"),
    "compile": _attribute(torch, "compile"),
    "forms": (_read_forms, _set_forms),
}
