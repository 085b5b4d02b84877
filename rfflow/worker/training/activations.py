"""``trainer.args.activation_checkpointing=auto``: activations are recomputed only where they would not fit.

What a step keeps for its backward pass is known beforehand: bytes grow with the tokens of a row, and with their square
where attention is written out. A forward pass over a few tokens, in which every tensor that is kept is counted, tells
how; the longest batch that the data can give tells for how many. Bits are the same kept and recomputed.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftType
from transformers import PreTrainedModel, Trainer
from transformers.modeling_layers import GradientCheckpointingLayer

from rfflow.runs.activations import Activations
from rfflow.worker.memory.sizes import show_bytes
from rfflow.worker.training.context import unmoved_random_state
from rfflow.worker.training.longest import Batch
from rfflow.worker.training.walks import replace_method

log = logging.getLogger(__name__)

NAME = "trainer.args.activation_checkpointing"

SHARE = 0.75
"""Of what is free: the rest is for what is not counted, fragments above all."""
_LOST = 1.5
"""What a heap takes for one byte that is kept, by what it cannot use of the blocks that were freed between."""
_EVERY = (4, 3, 2)
"""Recomputing every n-th layer, in the order in which that is tried: less is recomputed where n is larger."""
_TOKENS = (8, 16, 24)
"""Three lengths tell a constant, a linear and a square part."""
_ROWS = 2
_BY_CACHE = (PeftType.PREFIX_TUNING, PeftType.CARTRIDGE)
_TILE = 4096, 32768
"""How many tokens, and words of the vocabulary, TRL's fused loss takes at a time."""
_COPIES = 7
"""Of a tile that torch's own operations make."""


@dataclass(frozen=True)
class Kept:
    """What a forward pass keeps, in bytes."""

    once: float
    """However many tokens there are: weights that are cast, for example."""
    token: float
    """A token."""
    pair: float
    """A pair of tokens of one row."""
    layer: float
    """A token that enters a layer: what is left of the layer where it is recomputed."""
    layers: int
    """Layers that can be recomputed."""

    def all(self, batch: Batch) -> float:
        """Return what is kept where nothing is recomputed."""
        return self.once + batch.rows * (self.token * batch.tokens + self.pair * batch.tokens**2)

    def with_every(self, n: int, batch: Batch) -> float:
        """Return what is there at most where every ``n``-th layer is recomputed, one of them at a time."""
        return self.with_recomputed(-(-self.layers // n), batch)

    def with_recomputed(self, recomputed: int, batch: Batch) -> float:
        """Return what is there at most where so many layers are recomputed, one of them at a time."""
        if recomputed == 0:
            return self.all(batch)
        whole = self.all(batch)
        entering = (recomputed + 2) * self.layer * batch.rows * batch.tokens
        return whole * (1 - recomputed / self.layers) + whole / self.layers + entering


UNKNOWN = Kept(0, 0, 0, 0, 1)
"""Of a model that can recompute, but cannot be measured."""


def can_recompute(trainer: Trainer) -> bool:
    """Whether the trainer's model can recompute activations."""
    model = _transformer(trainer)
    if model is None or not model.supports_gradient_checkpointing or not _layers(model):
        return False
    # What PEFT puts before the keys and values travels as a cache, which a layer that recomputes goes without.
    adapters = getattr(trainer.model, "peft_config", None) or {}
    return not any(getattr(one, "peft_type", None) in _BY_CACHE for one in adapters.values())


def _transformer(trainer: Trainer) -> PreTrainedModel | None:
    return next((one for one in trainer.model.modules() if isinstance(one, PreTrainedModel)), None)


def _layers(model: PreTrainedModel) -> int:
    return sum(isinstance(module, GradientCheckpointingLayer) for module in model.modules())


def measure(trainer: Trainer) -> Kept | None:
    """Count what a forward pass through the trainer's model keeps; ``None`` where it cannot be recomputed.

    Raises:
        Exception: whatever the model raises, which may want more than tokens.
    """
    if not can_recompute(trainer):
        return None
    model = _transformer(trainer)
    assert model is not None
    layers, trunk = _layers(model), model.base_model
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*trunk.parameters(), *trunk.buffers())}
    a, b, c = (_kept(trainer, trunk, tokens, weights) for tokens in _TOKENS)
    step = _TOKENS[1] - _TOKENS[0]
    pair = max(0.0, (a - 2 * b + c) / (2 * step**2))
    token = max(0.0, (b - a) / step - pair * (_TOKENS[0] + _TOKENS[1]))
    once = max(0.0, a - token * _TOKENS[0] - pair * _TOKENS[0] ** 2)
    pair, token = pair / _ROWS, token / _ROWS
    hidden = getattr(model.config.get_text_config(), "hidden_size", 0)
    return Kept(once, token, pair, 4.0 * hidden, layers)


def _kept(trainer: Trainer, trunk: torch.nn.Module, tokens: int, weights: set[int]) -> int:
    found: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    device = trainer.args.device
    # Two rows, one of them padded: attention with a mask keeps more, the mask itself among it.
    ids = torch.zeros((_ROWS, tokens), dtype=torch.long, device=device)
    mask = torch.ones_like(ids)
    mask[1:, -1] = 0
    with (
        unmoved_random_state(device),
        _in_training(trunk),
        _keeping_all(trunk),
        _precision(trainer),
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
    ):
        left = trunk(input_ids=ids, attention_mask=mask, use_cache=False)
    del left
    return sum(found.values())


@contextlib.contextmanager
def _in_training(model: torch.nn.Module) -> Iterator[None]:
    """Dropout keeps its masks only there."""
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = True
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def _keeping_all(model: torch.nn.Module) -> Iterator[None]:
    """Let no layer recompute, whatever is chosen already."""
    layers = [one for one in model.modules() if isinstance(one, GradientCheckpointingLayer)]
    before = [one.gradient_checkpointing for one in layers]
    for one in layers:
        one.gradient_checkpointing = False
    try:
        yield
    finally:
        for one, was in zip(layers, before, strict=True):
            one.gradient_checkpointing = was


def _precision(trainer: Trainer) -> contextlib.AbstractContextManager[Any]:
    dtype = torch.bfloat16 if trainer.args.bf16 else torch.float16 if trainer.args.fp16 else None
    return contextlib.nullcontext() if dtype is None else torch.autocast(trainer.args.device.type, dtype)


def loss_bytes(trainer: Trainer, batch: Batch) -> float:
    """Return what the loss takes of a batch at most, whatever becomes of the activations before it."""
    model, tokens = _transformer(trainer), batch.rows * batch.tokens
    if "ForSequenceClassification" in type(model).__name__:
        return 0.0  # a number a row
    words = getattr(trainer.model.config.get_text_config(), "vocab_size", 0)
    if not any(hasattr(sys.modules.get(kind.__module__), "add_fused_lm_head") for kind in type(trainer).__mro__):
        return 3.0 * words * 4 * tokens
    # A tile at a time, which is as wide for a small vocabulary; where no kernel of Triton takes it, with its copies.
    copies = 0 if trainer.args.device.type in ("cuda", "xpu") else _COPIES
    return 4.0 * min(tokens, _TILE[0]) * (_TILE[1] + copies * min(words, _TILE[1]))


def choose(kept: Kept | None, batch: Batch | None, loss: float, free: float, asked: dict[str, Any]) -> int:
    """Return which layers are recomputed: every n-th, or 0 for none.

    Args:
        kept: what a forward pass keeps; without it nothing can be recomputed.
        batch: the longest one; without it all is, as TRL does by default.
        loss: bytes that the loss takes besides.
        free: bytes that there are.
        asked: ``activation_checkpointing_kwargs``, which may say how many layers.
    """
    if kept is None:
        return 0
    if batch is None:
        return int(asked.get("every_n_layers", 1))
    room = SHARE * free - loss
    if kept.all(batch) <= room:
        return 0
    if "every_n_layers" in asked:
        return int(asked["every_n_layers"])
    return next((n for n in _EVERY if kept.with_every(n, batch) <= room), 1)


def is_tight(kept: Kept | None, batch: Batch | None, loss: float, free: float) -> bool:
    """Whether what a heap loses between its blocks would be too much; arguments as for :func:`choose`."""
    return kept is not None and (batch is None or _LOST * kept.all(batch) > SHARE * free - loss)


def recompute(trainer: Trainer, every: int) -> None:
    """Have every n-th layer's activations recomputed from the first step on; the trainer must not have begun."""
    args = trainer.args
    given = dict(args.activation_checkpointing_kwargs or {})
    if every > 1:
        given["every_n_layers"] = every
    # TRL asks for both names.
    args.activation_checkpointing = args.gradient_checkpointing = True
    args.activation_checkpointing_kwargs = args.gradient_checkpointing_kwargs = given or None
    keep_choice(trainer)


def keep_choice(trainer: Trainer) -> None:
    """Let which layers recompute outlast the passes for which TRL turns that off: of a reference, of generation.

    TRL turns it on again by the old name and with all that was asked for, of which that takes only what torch's own
    ``checkpoint`` does; which layers, and where to, is the model's to remember.
    """
    args, model = trainer.args, _transformer(trainer)
    given = dict(args.activation_checkpointing_kwargs or {})
    which = {key: given.pop(key) for key in ("every_n_layers", "offload") if key in given}
    if not which or model is None:
        return
    args.gradient_checkpointing_kwargs = given or None
    enable = model.gradient_checkpointing_enable

    def enable_as_chosen(gradient_checkpointing_kwargs: dict[str, Any] | None = None, **others: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the name is TRL's
            enable(gradient_checkpointing_kwargs=gradient_checkpointing_kwargs, **{**which, **others})

    replace_method(model, "gradient_checkpointing_enable", enable_as_chosen)


def asked(trainer: Trainer, args: Mapping[str, Any]) -> Activations:
    """Return what a trainer does as it was told, or as TRL does where it was not."""
    given = next((name for name in (NAME.rpartition(".")[2], "gradient_checkpointing") if name in args), None)
    why = "as TRL does unless told otherwise" if given is None else f"trainer.args.{given} is {args[given]}".lower()
    if not trainer.args.activation_checkpointing:
        return Activations(0, why)
    return Activations(int((trainer.args.activation_checkpointing_kwargs or {}).get("every_n_layers", 1)), why)


def chosen(every: int, kept: Kept | None, batch: Batch | None, free: float) -> Activations:
    """Return what was chosen, and why."""
    if kept is None:
        return Activations(0, "this model cannot recompute them", is_chosen=True)
    if batch is None:
        return Activations(every, "how long a batch can be is not known", is_chosen=True)
    figures = f"{show_bytes(kept.all(batch))} for {batch.rows} x {batch.tokens} tokens, {show_bytes(max(0, free))} free"
    return Activations(every, f"kept they would take {figures}" if every else figures, is_chosen=True)
