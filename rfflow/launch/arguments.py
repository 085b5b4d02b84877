"""The command line, put into the order that Hydra's parser wants."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra._internal.utils import get_args_parser

import rfflow
from rfflow.config.files import CONF
from rfflow.launch import usage

_MODES = ("run", "multirun", "cfg", "info", "shell_completion")
"""Of Hydra's flags, those that say what is to be done at all."""


def groups(given: argparse.Namespace) -> usage.Groups:
    return usage.groups_in(CONF, *([Path(given.config_dir)] if given.config_dir else []))


def flags_first(argv: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
    """Put Hydra's flags before the overrides.

    Hydra's parser refuses what comes after a flag in the middle (``+recipe=sft --multirun lr=1e-3,1e-4``), which is how
    people write it.
    """
    short = [word for word in argv if re.match(r"-[^-]+=", word)]  # argparse would read -recipe=sft as -r ecipe=sft
    given, unknown = parser.parse_known_intermixed_args([word for word in argv if word not in short])
    for word in (*short, *unknown)[:1]:
        following = next(iter(argv[list(argv).index(word) + 1 :]), None) if word in argv else None
        options = [option for action in parser._actions for option in action.option_strings]
        parser.error(usage.why_no_flag(word, following, options, groups(given)))
    modes = [f"--{name.replace('_', '-')}" for name in _MODES if getattr(given, name)]
    if len(modes) > 1:
        parser.error(
            f"{' and '.join(modes)} cannot be given together. One configuration of a sweep is shown by --cfg job, "
            "without --multirun and with one value of everything that is swept."
        )
    flags = []
    for action in parser._actions:
        value = getattr(given, action.dest, None)
        if not action.option_strings or value in (None, False):
            continue
        flags += [action.option_strings[0]] if value is True else [action.option_strings[0], value]
    return [*flags, *given.overrides]


def make_parser() -> argparse.ArgumentParser:
    parser = get_args_parser()
    parser.error = _wrong_usage  # type: ignore[method-assign,assignment]
    for action in parser._actions:
        if action.dest == "version":
            action.version = f"rfflow {rfflow.__version__} ({action.version})"  # type: ignore[attr-defined]
    return parser


def _wrong_usage(message: str) -> None:
    print(f"{message[:1].upper()}{message[1:]}", file=sys.stderr)
    sys.exit(2)


def completion_line(line: str, parser: argparse.ArgumentParser) -> str:
    """Do the same for the unfinished line that a shell asks Hydra to complete."""
    program, *words = line.split(" ")
    if not words:
        return line
    *finished, last = words
    parser.error = _raise  # type: ignore[method-assign,assignment]
    try:
        return " ".join([program, *flags_first([word for word in finished if word], parser), last])
    except argparse.ArgumentError:
        return line  # as it stands no flags can be told from overrides


def _raise(message: str) -> None:
    raise argparse.ArgumentError(None, message)
