"""Rows become tokens once: for all runs that ask for the same, in whatever process, and for later experiments.

TRL tokenizes, cuts and packs by ``datasets``' ``map`` and ``filter``, which find on disk what was made before of the
same rows by the same function with the same arguments. Two things keep runs from finding each other's work. DPO's last
``filter`` (KTO's and the reward trainer's, too) closes over all of the run's arguments, so that a learning rate makes
another data set of it; here it closes over those that were read. And workers that begin at the same time all do the
work; here one of them does, and the others wait for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Iterator
from typing import Any

from datasets import Dataset
from filelock import FileLock, Timeout
from transformers import Trainer

from rfflow.config.paths import cache_folder

log = logging.getLogger(__name__)

_SOON = 2.0
"""Seconds after which it is said that another process is waited for."""


@contextlib.contextmanager
def alone_with(what: str) -> Iterator[None]:
    """Let one process at a time work on the same; where nothing can be locked, all of them do.

    Args:
        what: names the work; it goes with the process that dies.
    """
    lock = FileLock(cache_folder("data") / f"{hashlib.sha256(what.encode()).hexdigest()[:32]}.lock")
    try:
        try:
            lock.acquire(timeout=_SOON)
        except Timeout:
            log.info("Another process is preparing these rows and is waited for")
            lock.acquire()
    except (OSError, NotImplementedError) as error:  # a file system without locks
        log.info("Rows are prepared without a lock: %s", error)
        yield
        return
    try:
        yield
    finally:
        lock.release()


class ReadArguments:
    """A trainer's arguments, of which those count that are read: a fingerprint of this is one of them alone."""

    def __init__(self, read: dict[str, Any], arguments: Any = None):
        self._read = read
        self._arguments = arguments

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # of pickle, and of our own before there are any
            raise AttributeError(name)
        if name not in self._read:
            self._read[name] = getattr(self._arguments, name)
        return self._read[name]

    def __reduce__(self) -> tuple[Any, ...]:
        return ReadArguments, (dict(sorted(self._read.items())),)


@contextlib.contextmanager
def prepared_once(trainer_class: type[Trainer]) -> Iterator[None]:
    """Let trainers that are built inside find rows that another has prepared in the same way."""
    owner: Any = next((cls for cls in trainer_class.__mro__ if "_prepare_dataset" in vars(cls)), None)
    if owner is None or not owner.__module__.startswith("trl."):
        yield
        return
    prepare = owner._prepare_dataset

    def prepare_or_find(self: Trainer, dataset: Any, processing_class: Any, args: Any, *more: Any, **named: Any) -> Any:
        if not isinstance(dataset, Dataset):  # a stream is prepared as it is read
            return prepare(self, dataset, processing_class, args, *more, **named)
        with alone_with(f"{owner.__name__} {dataset._fingerprint}"):
            return prepare(self, dataset, processing_class, ReadArguments({}, args), *more, **named)

    owner._prepare_dataset = prepare_or_find
    try:
        yield
    finally:
        owner._prepare_dataset = prepare
