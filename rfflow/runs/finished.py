"""What a run has left, read without the libraries that load it: which model, what was trained of it, on which base."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rfflow.config.spec import ModelSpec

WHOLE = "all weights"


@dataclass(frozen=True)
class FinishedRun:
    """A run that has left a model."""

    number: int
    label: str
    """What messages call it: ``Run 3 of outputs/sft/...``."""
    folder: Path
    """Its ``checkpoints/final``: an adapter, or a whole model."""
    model: ModelSpec | None
    """The base model that it began with; ``None`` where nothing says which (an app built the trainer)."""
    adapter: Mapping[str, Any] | None = None
    """The adapter's ``adapter_config.json``; ``None`` of a run that trained every weight."""
    base: Mapping[str, str] = field(default_factory=dict)
    """The fingerprint of the base's weights, and the kind of device where it was taken; empty where nobody took it."""

    @property
    def method(self) -> str:
        """What was trained: PEFT's name of the method, or all weights."""
        return WHOLE if self.adapter is None else str(self.adapter.get("peft_type", "adapter"))

    @property
    def generates(self) -> bool:
        """Whether it is a model that writes text, as far as its files say."""
        if self.adapter is not None and self.adapter.get("task_type") not in (None, "CAUSAL_LM", "SEQ_2_SEQ_LM"):
            return False
        if self.model is not None and "auto_class" in self.model.kwargs:
            return "LM" in str(self.model.kwargs["auto_class"]) or "TextTo" in str(self.model.kwargs["auto_class"])
        names = read_json(self.folder / "config.json").get("architectures") or []
        return not any("Classification" in name for name in names)


def read_json(file: Path) -> dict[str, Any]:
    """Return a file's object; an empty one where there is no such file, or it holds none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
