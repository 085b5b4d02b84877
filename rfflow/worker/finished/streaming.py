"""An answer, word by word as it is generated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from transformers import TextStreamer

from rfflow.worker.finished.side_by_side import Prompt, Voice, drawing_alike


class _Streamer(TextStreamer):
    """Hands on finished text, and keeps it."""

    def __init__(self, tokenizer: Any, write: Callable[[str], None]):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.text = ""
        self._write = write

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Take some more text."""
        text = text if self.text else text.lstrip("\n")
        self.text += text
        self._write(text)


def streamed(
    voice: Voice, prompt: Prompt, settings: Mapping[str, Any], seed: int | None, write: Callable[[str], None]
) -> tuple[str, bool]:
    """Answer, and write text as it comes; return the answer and whether it is whole: Ctrl-C stops it.

    Raises:
        ConfigError: if it cannot be answered.
    """
    streamer = _Streamer(voice.tokenizer, write)
    try:
        with drawing_alike(seed):
            voice.answers([prompt], settings, streamer)
    except KeyboardInterrupt:
        return streamer.text, False
    return streamer.text, True
