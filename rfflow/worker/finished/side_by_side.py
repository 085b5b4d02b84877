"""Models of several runs in memory together: each base once, every run's adapter on a structure of its own around it.

There is nothing to switch between two runs, and methods that PEFT could not hold in one model stand beside each other.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jinja2 import TemplateError
from lightning_fabric import Fabric
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from rfflow.config.spec import ExperimentSpec, MemorySpec
from rfflow.errors import ConfigError, nearest
from rfflow.runs.finished import FinishedRun
from rfflow.worker.device import make_device_fabric
from rfflow.worker.finished.loading import load_base_of, load_whole, quiet, tokenizer_of, with_adapter
from rfflow.worker.memory.memory import Memory
from rfflow.worker.models.bases import Base

Prompt = str | Sequence[Mapping[str, Any]]
"""Text that is continued, or the messages of a conversation."""
BASE = "base"


@dataclass(frozen=True)
class Voice:
    """A model that answers."""

    name: str
    """``run 3``, or ``base``."""
    model: Any
    tokenizer: PreTrainedTokenizerBase

    @property
    def has_template(self) -> bool:
        """Whether it knows conversations."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    @property
    def room(self) -> int | None:
        """How many tokens it can look at, where its config says so."""
        room = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return room if isinstance(room, int) and room > 0 else None

    def tokenized(self, prompt: Prompt) -> list[int]:
        """Return the tokens of a prompt, a conversation up to where the assistant begins to speak.

        Raises:
            ConfigError: if the template cannot say it.
        """
        if isinstance(prompt, str):
            return list(self.tokenizer(prompt)["input_ids"])
        try:
            text = self.tokenizer.apply_chat_template(list(prompt), tokenize=False, add_generation_prompt=True)
        except (TemplateError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"The chat template of {self.name} refuses a conversation: {error}") from error
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def answers(
        self, prompts: Sequence[Prompt], settings: Mapping[str, Any], streamer: BaseStreamer | None = None
    ) -> list[str]:
        """Answer in one batch, filled up from the left.

        Raises:
            ConfigError: if a prompt is too long, or a setting cannot be.
        """
        batch = [self.tokenized(prompt) for prompt in prompts]
        config = self._generation_config(settings)
        width = max(map(len, batch))
        if width == 0:
            raise ConfigError("The prompt is empty.")
        if self.room is not None and width + config.max_new_tokens > self.room:
            raise ConfigError(
                f"A prompt of {width} tokens and max_new_tokens={config.max_new_tokens} are more than the {self.room} "
                f"that {self.name} can look at."
            )
        ids = torch.tensor([[config.pad_token_id] * (width - len(row)) + row for row in batch])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in batch])
        device = self.model.get_input_embeddings().weight.device
        given: dict[str, Any] = {"streamer": streamer} if streamer is not None else {}
        if settings.get("stop_strings"):
            given["tokenizer"] = self.tokenizer
        try:
            with torch.inference_mode(), quiet():
                found = self.model.generate(
                    input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=config, **given
                )
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{self.name} cannot generate so: {' '.join(str(error).split())[:300]}") from error
        start = 0 if self.model.config.is_encoder_decoder else width
        return list(self.tokenizer.batch_decode(found[:, start:], skip_special_tokens=True))

    def _generation_config(self, settings: Mapping[str, Any]) -> GenerationConfig:
        """Return transformers' settings: greedy unless something of sampling is said, which would be ignored else."""
        known = getattr(self.model, "generation_config", None)
        ends = getattr(known, "eos_token_id", None)
        ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
        own = self.tokenizer.eos_token_id
        ends = list(dict.fromkeys([*([] if own is None else [own]), *ends]))
        pad = self.tokenizer.pad_token_id
        samples = any(settings.get(key) is not None for key in _OF_SAMPLING)
        given = {"max_new_tokens": 256, "do_sample": samples, "eos_token_id": ends or None, **settings}
        given.setdefault("pad_token_id", ends[0] if pad is None and ends else pad or 0)
        try:
            with quiet():
                config = GenerationConfig(**given)
                config.validate()
        except (ValueError, TypeError) as error:
            said = " ".join(f"{key}={value!r}" for key, value in settings.items())
            raise ConfigError(f"{said}: transformers refuses it: {' '.join(str(error).split())[:300]}") from error
        return config


_OF_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h")


def check_settings(settings: Mapping[str, Any]) -> None:
    """Check sampling arguments, of which GenerationConfig itself takes any as a setting of the model's own.

    Raises:
        ConfigError: for a name that it does not have.
    """
    known = [name for name in vars(GenerationConfig()) if not name.startswith("_")]
    for key, value in settings.items():
        if key not in known:
            raise ConfigError(
                f"{key}={value!r}: GenerationConfig has no {key!r}.{nearest(key, known)} All of them: python -c "
                "'from transformers import GenerationConfig as C; help(C)'"
            )
    length = settings.get("max_new_tokens", 1)
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise ConfigError(f"max_new_tokens is {length!r}. Allowed: a whole number from 1 up.")


def load_voices(runs: Sequence[FinishedRun], *, with_base: bool = False, accelerator: str = "auto") -> list[Voice]:
    """Load the models of runs.

    Args:
        runs: those of one base share it in memory; those that trained every weight have their own.
        with_base: put what they began with before them.
        accelerator: as Lightning Fabric names it.

    Raises:
        ConfigError: if one does not write text, or cannot be loaded.
    """
    for run in runs:
        if not run.generates:
            raise ConfigError(
                f"{run.label} is no model that writes text: it has a head that scores. To use it: rfflow export"
            )
    loaded = _Loaded(make_device_fabric(ExperimentSpec("generate", accelerator=accelerator)))
    tokenizers = [tokenizer_of(run) for run in runs]
    voices = [Voice(f"run {run.number}", loaded.model(run), own) for run, own in zip(runs, tokenizers, strict=True)]
    if not with_base:
        return voices
    bases: dict[str, Voice] = {}
    for run, tokenizer in zip(runs, tokenizers, strict=True):
        base = loaded.base(run)
        name = BASE if len({run.model and run.model.key for run in runs}) == 1 else f"{BASE} of run {run.number}"
        own = base.tokenizer()
        if not own.chat_template:  # the run's, else what they are asked would not be the same
            own = copy.deepcopy(tokenizer)
        bases.setdefault(str(run.model and run.model.key), Voice(name, base.model, own))
    return [*bases.values(), *voices]


class _Loaded:
    """What is in memory."""

    def __init__(self, fabric: Fabric):
        self._fabric = fabric
        self._bases: dict[str, Base] = {}

    def base(self, run: FinishedRun) -> Base:
        """Return the base of a run, loading it the first time; that it is the right one is checked for every run."""
        key = f"{run.model.key if run.model else None} {run.base.get('fingerprint')}"
        if key not in self._bases:
            self._bases[key] = load_base_of(run, self._fabric)
        return self._bases[key]

    def model(self, run: FinishedRun) -> Any:
        """Return the model of a run."""
        if run.adapter is not None:
            base = self.base(run)
            model = with_adapter(base, run)
            base.check_untouched(run.label)
            return model
        Memory(self._fabric, MemorySpec()).require_base(str(run.folder), {"dtype": "auto"})
        return self._fabric.to_device(load_whole(run))


@contextlib.contextmanager
def drawing_alike(seed: int | None) -> Iterator[None]:
    """Let what is sampled inside be the same for every model, as far as models are alike; or new each time."""
    if seed is None:
        torch.seed()
    else:
        torch.manual_seed(seed)
    yield
