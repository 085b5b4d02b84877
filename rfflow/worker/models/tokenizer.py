"""A tokenizer of every run's own, without the bulk of it.

A trainer may set special tokens, a chat template or a padding side, so every run has its own. But the vocabulary inside
takes ten megabytes and half a second to copy, and hardly a run changes it: copies share it until one does.
"""

from __future__ import annotations

import copy
import weakref
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase


class SharedTokenizer:
    """One loaded tokenizer, of which runs get copies."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        self._given: list[weakref.ref[Any]] = []
        backend = getattr(tokenizer, "_tokenizer", None)
        self._backend = backend if type(backend) is Tokenizer else None
        """None for processors and for tokenizers written in Python: a copy of one is a whole copy."""
        if self._backend is not None:
            self._as_loaded = self._backend.to_str()
            self._truncation, self._padding = self._backend.truncation, self._backend.padding
        self._mark = self.mark()

    def copy(self) -> PreTrainedTokenizerBase:
        """Return a tokenizer for one run; call :meth:`part` when its trainer is built."""
        if self._backend is None:
            return copy.deepcopy(self._tokenizer)
        self._forget_the_last_call(self._backend)
        own = copy.deepcopy(self._tokenizer, {id(self._backend): self._backend})
        self._given = [given for given in self._given if given() is not None] + [weakref.ref(own)]
        return own

    def part(self) -> bool:
        """Let the run that got the last copy keep the vocabulary to itself if it has changed it; return whether it had.

        The others get the vocabulary as it was loaded.
        """
        if self._backend is None or self.mark() == self._mark:
            return False
        fresh = Tokenizer.from_str(self._as_loaded)
        for tokenizer in (self._tokenizer, *(given() for given in self._given[:-1])):
            if tokenizer is not None and tokenizer._tokenizer is self._backend:
                tokenizer._tokenizer = fresh
        self._backend = fresh
        return True

    def restore(self) -> None:
        """Give everybody the vocabulary as it was loaded, if somebody has changed it."""
        if self._backend is None or self.mark() == self._mark:
            return
        fresh = Tokenizer.from_str(self._as_loaded)
        for tokenizer in (self._tokenizer, *(given() for given in self._given)):
            if tokenizer is not None and tokenizer._tokenizer is self._backend:
                tokenizer._tokenizer = fresh
        self._backend = fresh

    def mark(self) -> tuple[object, ...]:
        """Return what differs as soon as somebody changes what is shared; quickly, so not the vocabulary itself."""
        if self._backend is None:
            return ()
        parts = (getattr(self._backend, name) for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder"))
        added = self._backend.get_added_tokens_decoder()
        return (
            self._backend.get_vocab_size(),
            *(None if part is None else part.__getstate__() for part in parts),
            *((number, token.__getstate__()) for number, token in sorted(added.items())),
        )

    def _forget_the_last_call(self, backend: Tokenizer) -> None:
        """Undo what a call said about cutting and filling; the next says it anew.

        It is part of the fingerprint by which ``datasets`` knows that rows have been tokenized before.
        """
        if backend.truncation != self._truncation:
            backend.no_truncation() if self._truncation is None else backend.enable_truncation(**self._truncation)
        if backend.padding != self._padding:
            backend.no_padding() if self._padding is None else backend.enable_padding(**self._padding)
