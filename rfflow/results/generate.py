"""``rfflow generate``: what runs answer to the prompts of a file, side by side."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rfflow.errors import ConfigError, RfflowError
from rfflow.files import replace_text, shown, typed_command
from rfflow.results.finished import add_choice, chosen
from rfflow.results.opened import open_experiment
from rfflow.results.prompts import Row, answer_rows, asked, read_prompts
from rfflow.results.sampling import add_sampling, read_settings

log = logging.getLogger(__name__)


def generate(argv: Sequence[str]) -> int:
    """Answer the prompts of a file; return the exit status."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog=f"{typed_command()} generate",
        description="Answer the prompts of a JSONL file with the models of runs: a column a run.",
    )
    parser.add_argument("dir", help="an experiment's directory")
    parser.add_argument(
        "--prompts",
        required=True,
        metavar="FILE",
        help="JSONL: objects with prompt or messages, or texts; - reads them",
    )
    add_choice(parser, several=True)
    add_sampling(parser)
    parser.add_argument("--base", action="store_true", help="a column for what the runs began with, too")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="prompts at a time (default: 8)")
    parser.add_argument("--to", metavar="FILE", help="a new file for the answers (default: they are printed)")
    args = parser.parse_intermixed_args(argv)
    try:
        text = _answers(args)
        if args.to is None:
            sys.stdout.write(text)
        else:
            replace_text(Path(args.to).expanduser(), text)
            log.info("%s", shown(Path(args.to)))
    except RfflowError as error:
        print(f"rfflow generate: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"rfflow generate: the answers cannot be written: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("rfflow generate: interrupted; nothing was written.", file=sys.stderr)
        return 130
    return 0


def _answers(args: argparse.Namespace) -> str:
    settings = read_settings(args.settings)
    runs = chosen(open_experiment(args.dir), args, args.base_model)
    rows = read_prompts(args.prompts)
    if args.batch_size < 1:
        raise ConfigError(f"--batch-size is {args.batch_size}. Allowed: a whole number from 1 up.")
    if args.to is not None and Path(args.to).expanduser().exists():
        raise ConfigError(f"--to {args.to} exists, and is not written over. Give a new file.")
    if args.raw and args.system is not None:
        raise ConfigError("--system is a turn of a conversation, and --raw gives text without any. Say one of both.")
    from rfflow.worker.finished.side_by_side import check_settings, drawing_alike, load_voices

    check_settings(settings)
    voices = load_voices(runs, with_base=args.base, accelerator=args.accelerator)
    names = [voice.name.replace(" ", "_") for voice in voices]
    for name in names:
        if any(name in row.columns for row in rows):
            raise ConfigError(f"--prompts {args.prompts} has a column {name}, where the answers would go. Rename it.")
    if not args.raw and any(isinstance(row.prompt, str) for row in rows):
        without = [voice.name for voice in voices if not voice.has_template]
        if without:
            raise ConfigError(f"The tokenizer of {without[0]} has no chat template. Say --raw to give text as it is.")
    answers: dict[str, list[str]] = {}
    for voice, name in zip(voices, names, strict=True):
        began, found = time.monotonic(), []
        with drawing_alike(42 if args.seed is None else args.seed):
            for batch in _batches(rows, args.batch_size):
                prompts = [asked(row.prompt, args.system, raw=args.raw) for row in batch]
                found += voice.answers(prompts, settings)
        answers[name] = found
        log.info("%s: %d answers in %.1f s", voice.name, len(rows), time.monotonic() - began)
    return answer_rows(rows, answers)


def _batches(rows: Sequence[Row], size: int) -> list[Sequence[Row]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
