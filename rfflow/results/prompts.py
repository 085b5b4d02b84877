"""What runs are asked: rows of a JSONL file."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rfflow.errors import ConfigError

Prompt = str | list[dict[str, Any]]


@dataclass(frozen=True)
class Row:
    """A line of the file."""

    columns: Mapping[str, Any]
    """All of it, which goes into the answers."""
    prompt: Prompt


def read_prompts(name: str) -> list[Row]:
    """Read a JSONL file, ``-`` for what comes in.

    A line is an object with ``prompt`` (text, or messages) or ``messages`` (of which the last is left out if it is the
    assistant's), or text.

    Raises:
        ConfigError: naming the first line that is neither.
    """
    if name == "-":
        text = sys.stdin.read()
    else:
        try:
            text = Path(name).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ConfigError(f"--prompts {name} cannot be read: {reason}.") from error
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise ConfigError(f"--prompts {name} is empty. Allowed: a line of JSON for each prompt.")
    return [_row(line, f"--prompts {name}, line {number}") for number, line in lines]


def _row(line: str, where: str) -> Row:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise ConfigError(f'{where} is no JSON: {error}. Allowed: {{"prompt": "..."}} or "text".') from error
    columns = {"prompt": found} if isinstance(found, str) else found
    if not isinstance(columns, dict):
        raise ConfigError(f"{where} is {line[:60]!r}. Allowed: an object with prompt or messages, or text.")
    prompt = columns.get("prompt", columns.get("messages"))
    if isinstance(prompt, list) and prompt and all(_is_message(each) for each in prompt):
        prompt = prompt[:-1] if prompt[-1]["role"] == "assistant" else prompt
    elif not isinstance(prompt, str):
        raise ConfigError(
            f"{where} has neither prompt nor messages that can be asked. Columns there: {', '.join(columns)}."
        )
    if not prompt:
        raise ConfigError(f"{where}: the prompt is empty.")
    return Row(columns, prompt)


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("role"), str) and "content" in value


def asked(prompt: Prompt, system: str | None, *, raw: bool) -> Prompt:
    """Return what a model is given.

    Args:
        prompt: text becomes the user's turn, if it is not to stay as it is.
        system: goes before a conversation that has no system prompt of its own.
        raw: text stays text.
    """
    if isinstance(prompt, str):
        if raw:
            return prompt
        prompt = [{"role": "user", "content": prompt}]
    if system is not None and prompt[0]["role"] != "system":
        prompt = [{"role": "system", "content": system}, *prompt]
    return prompt


def answer_rows(rows: Sequence[Row], answers: Mapping[str, Sequence[str]]) -> str:
    """Return the rows with a column for each model, as JSONL."""
    lines = [
        {**row.columns, **{name: column[place] for name, column in answers.items()}} for place, row in enumerate(rows)
    ]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
