"""Base models: loaded once, shared by every run whose adapters leave them alone."""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rfflow.config.spec import ModelSpec
from rfflow.errors import EngineError, RunFailed
from rfflow.worker.models.tokenizer import SharedTokenizer

Load = Callable[[ModelSpec], tuple[PreTrainedModel, PreTrainedTokenizerBase]]


class Base:
    """One loaded model and its tokenizer."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        reload: Callable[[], PreTrainedModel] | None = None,
    ):
        """Take it as it is.

        Args:
            model: nobody trains its weights.
            tokenizer: its tokenizer.
            reload: loads the model once more.
        """
        self.model = model
        _leave_weights_alone(model)
        self._reload = reload
        self._tokenizer = SharedTokenizer(tokenizer)
        self._tensors = list(_tensors(model))
        self._layout = _Layout(model)
        self._all = [tensor for _, tensor in self._tensors]
        self._versions = [tensor._version for tensor in self._all]
        self._marks = self._take_marks()
        self._checksums = {name: _checksum(tensor) for name, tensor in _tensors(model)}

    @property
    def bytes(self) -> int:
        """The size of the weights."""
        return sum(parameter.numel() * parameter.element_size() for parameter in self.model.parameters())

    @functools.cached_property
    def digest(self) -> str:
        """A hash of every weight and buffer."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of the weights as they were loaded, by the sums that are there anyway: quick, and not for secrets.

        The same on every device. Buffers are left out: a library computes them, each version in its way.
        """
        found = hashlib.sha256()
        for name, _ in sorted(self.model.named_parameters()):
            sums = self._checksums[name]
            found.update(f"{name} {sums and (*sums[:2], *sums[3:])}".encode())
        return found.hexdigest()[:32]

    def structure(self) -> PreTrainedModel:
        """Return a model whose modules are its own and whose parameters and buffers are the base's.

        PEFT can wrap it, TRL can patch its ``forward``, a config can be edited: nothing of that reaches another run.
        """
        tensors = chain(self.model.parameters(), self.model.buffers(), _held_aside(self.model))
        return copy.deepcopy(self.model, {id(tensor): tensor for tensor in tensors})

    def copy(self) -> PreTrainedModel:
        """Return a model that shares nothing, for a run that trains the weights themselves."""
        model = copy.deepcopy(self.model)
        model.requires_grad_(True)
        return model

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Return a tokenizer of the run's own: trainers set its special tokens and its template."""
        return self._tokenizer.copy()

    def part_tokenizer(self) -> None:
        """Let the run that got the last tokenizer keep to itself what it has changed in it."""
        self._tokenizer.part()

    def unshare(self, model: torch.nn.Module) -> int:
        """Give ``model`` its own copy of every shared parameter that it trains (``bias="all"``, say).

        Returns how many parameters were copied. Call it before the optimizer exists.
        """
        shared = {id(parameter) for parameter in self.model.parameters()}
        own: dict[int, torch.nn.Parameter] = {}  # tied weights stay tied
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is None or not parameter.requires_grad or id(parameter) not in shared:
                    continue
                if id(parameter) not in own:
                    own[id(parameter)] = torch.nn.Parameter(parameter.detach().clone())
                module._parameters[name] = own[id(parameter)]
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        return len(own)

    def check_untouched(self, culprit: str) -> None:
        """Raise unless every weight and buffer of the base holds the values that were loaded, and put them back.

        Raises:
            RunFailed: naming ``culprit`` and what it has changed; for the others all is as it was.
            EngineError: when that could not be restored.
        """
        now = self._take_marks()
        moved = [name for name, mark in self._marks.items() if now.get(name) != mark]
        changed = [name for name in moved if self._is_changed(name)]
        if not changed:
            self._marks = now  # written to, and the same: PEFT hangs its adapters of single parameters in that way
            return
        others = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        said = f"{culprit} changed {changed[0]}{others} of the base model that it shares with other runs"
        advice = "Give it weights of its own with peft=none, or a base of its own with another model.name."
        trouble = self._restore(changed)
        if trouble is not None:
            raise EngineError(f"{said}; their results would be wrong, as it cannot be restored: {trouble} {advice}")
        self._marks = self._take_marks()
        raise RunFailed(f"{said}. They go on with the base as it was loaded. {advice}")

    def was_written_to(self) -> bool:
        """Whether a weight or buffer was, since this was last asked: a glance, for :meth:`check_untouched` to judge."""
        versions = [tensor._version for tensor in self._all]
        was, self._versions = self._versions, versions
        return versions != was

    def _take_marks(self) -> dict[str, tuple[object, ...]]:
        if not self._layout.stands():  # to walk through all modules takes ten times as long as what follows
            self._tensors, self._layout = list(_tensors(self.model)), _Layout(self.model)
        # torch counts in-place writes to a tensor in `_version`; no weight needs to be read for this.
        marks: dict[str, tuple[object, ...]] = {
            name: (id(tensor), tensor.data_ptr(), tensor.shape, tensor.dtype, tensor.device, tensor._version)
            for name, tensor in self._tensors
        }
        return {**marks, TOKENIZER: self._tokenizer.mark()}

    def _is_changed(self, name: str) -> bool:
        if name == TOKENIZER:
            return True
        tensor = dict(_tensors(self.model)).get(name)
        checksum = self._checksums[name]
        return tensor is None or checksum is None or _checksum(tensor) != checksum

    def _restore(self, names: Sequence[str]) -> str | None:
        """Put the loaded values back; return why that is not possible, if it is not."""
        if self._reload is None:
            return "it is not known where it came from."
        self._tokenizer.restore()
        names = [name for name in names if name != TOKENIZER]
        try:
            fresh, own = dict(_tensors(self._reload())) if names else {}, dict(_tensors(self.model))
            for name in names:
                _put_back(own[name], fresh[name].detach())
        except Exception as error:
            return f"{type(error).__name__}: {error}."
        wrong = [name for name in names if self._is_changed(name)]
        return f"{wrong[0]} is another one now where it was loaded from." if wrong else None


class _Layout:
    """Which modules and tensors a model is made of, and where; as it was when this was made."""

    def __init__(self, model: torch.nn.Module):
        self._registers: list[dict[str, Any]] = [
            register
            for module in model.modules()
            for register in (module._modules, module._parameters, module._buffers)
        ]
        self._values = self._now()
        """Kept alive, so that nothing else gets the id of one of them."""
        self._seen = list(map(id, self._values)), list(chain.from_iterable(self._registers))

    def stands(self) -> bool:
        """Whether each is where it was, and nothing else is there."""
        return self._seen == (list(map(id, self._now())), list(chain.from_iterable(self._registers)))

    def _now(self) -> list[Any]:
        return list(chain.from_iterable(map(dict.values, self._registers)))


TOKENIZER = "the tokenizer"


def _leave_weights_alone(model: torch.nn.Module) -> None:
    """Keep layers of bitsandbytes from changing weights that runs share.

    In eight bits they take the scales out of a weight at the first pass, of which the next run then has none: so they
    take them now. In four, on some CPUs, an evaluation packs the weights and rounds their scales, for good: not here.
    """
    for module in model.modules():
        layer: Any = module
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
        take = getattr(layer, "init_8bit_state", None)
        if callable(take) and getattr(layer.weight, "CB", None) is not None:
            take()


def _held_aside(model: torch.nn.Module) -> Iterator[torch.Tensor]:
    """Return what such layers hold of their weights in an object beside them."""
    for module in model.modules():
        for held in vars(module).values():
            if dataclasses.is_dataclass(held):
                yield from (value for value in vars(held).values() if isinstance(value, torch.Tensor))


def _tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    return chain(model.named_parameters(), model.named_buffers())


def _put_back(tensor: torch.Tensor, loaded: torch.Tensor) -> None:
    if (tensor.dtype, tensor.shape) == (loaded.dtype, loaded.shape):
        tensor.data.copy_(loaded)
    else:
        tensor.data = loaded.to(tensor.device)


def _checksum(tensor: torch.Tensor) -> tuple[object, ...] | None:
    """Return what differs, but by a chance of nothing, when a value of a tensor does; None where it cannot be read.

    Sums of the rows' and of the columns' bits, so that it notices who changes places, too; about what it takes to read
    the weights once or twice.
    """
    try:
        flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
        rows = tensor.shape[0] if tensor.dim() else 1
        words = flat.view(torch.int64) if flat.numel() % 8 == 0 else flat
        words = words.view(rows, -1) if rows and words.numel() % rows == 0 else words.view(1, -1)
        sums = [words.sum(dim, dtype=torch.int64) for dim in (0, 1)]
        places = [torch.arange(1, len(each) + 1, device=each.device) for each in sums]
        found = [int((each * place).sum()) for each, place in zip(sums, places, strict=True)]
    except (RuntimeError, NotImplementedError, TypeError):  # tensors of a library's own class
        return None
    return (tensor.dtype, tuple(tensor.shape), tensor.device, *found)


class Bases:
    """Every base model of an experiment, each loaded once."""

    def __init__(self, load: Load, to_device: Callable[[PreTrainedModel], PreTrainedModel]):
        self._load = load
        self._to_device = to_device
        self._bases: dict[str, Base] = {}

    def get(self, spec: ModelSpec) -> Base:
        """Return the base of ``spec``, loading it the first time it is asked for."""
        if spec.key not in self._bases:
            model, tokenizer = self._load(spec)
            model.requires_grad_(False)
            reload = functools.partial(self._load_model, spec)
            self._bases[spec.key] = Base(self._to_device(model), tokenizer, reload)
        return self._bases[spec.key]

    def _load_model(self, spec: ModelSpec) -> PreTrainedModel:
        model = self._load(spec)[0]
        # A second one on the device may be too much, but that is where weights are quantised.
        return self._to_device(model) if getattr(model, "is_quantized", False) else model

    def has(self, spec: ModelSpec) -> bool:
        """Whether the base of ``spec`` is loaded."""
        return spec.key in self._bases

    def part_tokenizers(self) -> None:
        """Say that a run is built: what it has changed in its tokenizer stays its own."""
        for base in self._bases.values():
            base.part_tokenizer()
