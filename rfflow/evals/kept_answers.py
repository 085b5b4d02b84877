"""Answers of servers, kept on disk across experiments: what was paid for once is not asked for again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

_FORM = 1
"""Of the files; those of another form are not read."""


@dataclass(frozen=True)
class KeptAnswer:
    """What a server has answered."""

    text: str
    usage: Mapping[str, int]
    """Tokens, by what they are called."""
    latency: float
    """Seconds, when it was asked."""


class KeptAnswers:
    """The answers to requests, one file each, for all processes that use the folder at the same time.

    A file is written aside and then put in place, so that nobody reads a part of one. Trouble with the disk costs a
    warning and the saving, never an answer.

    Args:
        folder: where they are, e.g. ``cache_folder("answers")``.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._is_writable = True

    def get(self, key: str) -> KeptAnswer | None:
        """Return what is kept under a key; ``None`` where nothing is that can be read."""
        try:
            content = json.loads(self._file(key).read_bytes())
            if content["form"] != _FORM or not isinstance(content["text"], str):
                return None
            usage = {str(name): int(count) for name, count in content["usage"].items()}
            return KeptAnswer(content["text"], usage, float(content["latency"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None  # not there, or damaged: it is asked for and written anew

    def put(self, key: str, answer: KeptAnswer) -> None:
        """Keep an answer; only the user can read it."""
        if not self._is_writable:
            return
        file = self._file(key)
        content = {"form": _FORM, "text": answer.text, "usage": dict(answer.usage), "latency": answer.latency}
        temporary: str | None = None
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=file.parent, suffix=".tmp")
            with open(descriptor, "w", encoding="utf-8") as aside:
                json.dump(content, aside)
            os.replace(temporary, file)
        except OSError as error:
            self._is_writable = False
            log.warning("Answers are no longer kept in %s: %s. The experiment goes on.", self._folder, error.strerror)
            if temporary is not None:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)

    def _file(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.json"


class Keys:
    """Names the requests of one run: by the server, all that is sent, and how often the run has sent just that before.

    Equal requests of one run are samples of their own, and get the same names in every run that asks as often.
    """

    def __init__(self, server: str, given: Mapping[str, Any]):
        self._of_all = [server, dict(given)]
        self._seen: Counter[str] = Counter()

    def copy(self) -> Keys:
        """Return names that go on from here by themselves."""
        found = Keys("", {})
        found._of_all, found._seen = self._of_all, self._seen.copy()
        return found

    def of(self, messages: Any) -> str:
        """Return the key of the next request with these messages."""
        request = _hash([*self._of_all, messages])
        sample = self._seen[request]
        self._seen[request] += 1
        return _hash([request, sample])


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
