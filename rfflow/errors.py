"""What can go wrong for a user. Hydra prints these as one clear sentence, without a trace, and exits with status 1."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from hydra.errors import CompactHydraException

from rfflow.confidential import without_secrets


class RfflowError(CompactHydraException):
    """Anything a user can mend; it may quote what a library said, and values, but no secrets."""

    def __init__(self, *arguments: object):
        super().__init__(*(without_secrets(each) if isinstance(each, str) else each for each in arguments))


class ConfigError(RfflowError):
    """The configuration asks for something that cannot be; found before any training."""


class OpError(RfflowError):
    """An op that cannot be applied; nothing of it has been."""


class RunFailed(RfflowError):
    """One run raised while training. The others went on."""


class EngineError(RfflowError):
    """The experiment cannot go on."""


class Paused(EngineError):
    """The experiment waits for more money, in another process; everything is saved."""


class WorkerError(RfflowError):
    """What a library raised in another process, of which only its kind and its words travel."""

    def __init__(self, kind: str, words: str):
        super().__init__(kind, words)
        self.kind = kind
        self.words = words

    def __str__(self) -> str:
        return self.words


def kind_of(error: BaseException) -> str:
    """Return the name of an error's class, wherever it was raised."""
    return error.kind if isinstance(error, WorkerError) else type(error).__name__


def nearest(word: str, allowed: Iterable[str], count: int = 3, cutoff: float = 0.6) -> str:
    """Return a hint such as " Did you mean 'warmup_steps'?", or "" where nothing comes close."""
    matches = difflib.get_close_matches(word, list(allowed), n=count, cutoff=cutoff)
    if not matches:
        return ""
    return " Did you mean " + " or ".join(repr(match) for match in matches) + "?"
