"""Base models: loaded once, shared by every run whose adapters leave them alone."""

from __future__ import annotations

import copy
import functools
import hashlib
from collections.abc import Callable
from itertools import chain

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rfflow.errors import EngineError
from rfflow.spec import ModelSpec
from rfflow.training.tokenizer import SharedTokenizer

Load = Callable[[ModelSpec], tuple[PreTrainedModel, PreTrainedTokenizerBase]]


class Base:
    """One loaded model and its tokenizer."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        self.model = model
        self._tokenizer = SharedTokenizer(tokenizer)
        self._fingerprint = self._take_fingerprint()

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

    def structure(self) -> PreTrainedModel:
        """Return a model whose modules are its own and whose parameters and buffers are the base's.

        PEFT can wrap it, TRL can patch its ``forward``, a config can be edited: nothing of that reaches another run.
        """
        tensors = chain(self.model.parameters(), self.model.buffers())
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
        """Raise unless every weight of the base is the one that was loaded.

        Raises:
            EngineError: naming ``culprit``, when something wrote to the shared weights.
        """
        now = self._take_fingerprint()
        for name, before in self._fingerprint.items():
            if now.get(name) != before:
                raise EngineError(
                    f"{culprit} changed {name} of the base model that it shares with other runs; their results would "
                    "be wrong. Give the run weights of its own with peft=none, or a base of its own with another "
                    "model.name."
                )

    def _take_fingerprint(self) -> dict[str, tuple[object, ...]]:
        # torch counts in-place writes to a tensor in `_version`; no weight needs to be read for this.
        weights: dict[str, tuple[object, ...]] = {
            name: (id(tensor), tensor.data_ptr(), tuple(tensor.shape), tensor._version)
            for name, tensor in self.model.named_parameters()
        }
        return {**weights, "the tokenizer": self._tokenizer.mark()}


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
            self._bases[spec.key] = Base(self._to_device(model), tokenizer)
        return self._bases[spec.key]

    def has(self, spec: ModelSpec) -> bool:
        """Whether the base of ``spec`` is loaded."""
        return spec.key in self._bases

    def part_tokenizers(self) -> None:
        """Say that a run is built: what it has changed in its tokenizer stays its own."""
        for base in self._bases.values():
            base.part_tokenizer()
