"""The commands that look at experiments, each imported when it is asked for."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence

_COMMANDS = {
    "ls": "listing",
    "show": "listing",
    "export": "export",
    "generate": "generate",
    "chat": "chat",
    "compare": "compare",
    "rescore": "rescore",
}
"""Each by its name, and the module of this package whose function of that name it is."""


def main(command: str, argv: Sequence[str]) -> int:
    """Run ``rfflow <command>`` and return its exit status."""
    module = importlib.import_module(f"rfflow.results.{_COMMANDS[command]}")
    with _telling():
        try:
            status = int(getattr(module, command)(argv))
            sys.stdout.flush()
        except BrokenPipeError:  # whoever was reading has seen enough: head, a pager
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at its end
            return 128 + 13
    return status


@contextlib.contextmanager
def _telling() -> Iterator[None]:
    """Say on the terminal what takes its time, such as loading a model: ours alone, libraries have much to say."""
    log, handler = logging.getLogger("rfflow"), logging.StreamHandler(sys.stderr)
    level, propagates = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagates
