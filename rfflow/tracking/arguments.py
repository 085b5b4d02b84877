"""``arguments.json``: what a trainer's and an adapter's configuration take, for programs that do without torch."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rfflow.files import replace_text, shown

log = logging.getLogger(__name__)

VERSION = 1

Arguments = Mapping[str, Mapping[str, Any]]
"""What is known of an argument, by its name, by its class's dotted name (``_target_`` in configurations)."""


class ArgumentsFile:
    """Keeps ``arguments.json`` of an experiment current.

    The file is one object::

        {"version": 1,
         "classes": {"trl.SFTConfig": {"learning_rate": {"type": "float", "takes": ["float"], "choices": [],
                                                         "default": 2e-05, "help": "The initial learning rate ..."},
                                       ...},
                     "peft.LoraConfig": {...}}}

    ``takes`` has the plain types that are allowed (``null`` besides, where ``type`` says so), and is empty where the
    class allows something else, too; ``choices`` the only words, if there are such.
    """

    def __init__(self, path: Path):
        self._path = path
        self._written: dict[str, Mapping[str, Any]] | None = None

    def write(self, classes: Arguments) -> None:
        """Write what is known, if it is news; an earlier process's stays. What cannot be written costs a warning."""
        if self._written is not None and classes.keys() <= self._written.keys():
            return
        self._written = {**(read_arguments(self._path) if self._written is None else self._written), **classes}
        if not self._written:
            return
        try:
            replace_text(self._path, json.dumps({"version": VERSION, "classes": self._written}, indent=1) + "\n")
        except OSError as error:
            log.warning("%s cannot be written: %s", shown(self._path), error)


def read_arguments(path: Path) -> dict[str, Mapping[str, Any]]:
    """Return the classes that the file has; none where there is no file that can be read."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["classes"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
