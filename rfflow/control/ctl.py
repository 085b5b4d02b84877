"""``rfflow ctl``: ask something of a running experiment from another terminal, and wait for the answer."""

from __future__ import annotations

import argparse
import difflib
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rfflow.control.asking import drop, wait_for_reply
from rfflow.control.filing import printable
from rfflow.control.items import DONE, REJECTED
from rfflow.control.ops import VERBS, parse
from rfflow.control.ownership import Owner, living_owner
from rfflow.errors import OpError
from rfflow.files import typed_command

OK, FAILED, USAGE, NOT_YET = 0, 1, 2, 3

_ALIKE = {
    **dict.fromkeys(("ls", "list", "ps", "show", "info"), "status"),
    **dict.fromkeys(("kill", "pause", "halt", "end"), "stop"),
    **dict.fromkeys(("start", "continue", "go", "restart"), "resume"),
    **dict.fromkeys(("copy", "fork", "cp", "new"), "clone"),
    **dict.fromkeys(("rm", "remove", "del"), "delete"),
}
"""What others call it."""
_EXAMPLES = """\
examples:
  {ctl} status
  {ctl} stop 3
  {ctl} stop --worst 50%
  {ctl} resume 3 4
  {ctl} clone 0 lr=5e-4 peft.r=32 --warm-start
  {ctl} clone --best 1 lr=1e-4,5e-4
  {ctl} delete all

exit status: 0 applied, 1 refused or no experiment, 2 wrong usage, 3 not answered yet
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``rfflow ctl`` with these arguments (those after ``ctl``) and return its exit status."""
    parser = _parser()
    try:
        args, unknown = parser.parse_known_intermixed_args(argv)
        _check_usage(args, unknown, parser)
        document = None if args.verb == "status" else _document(args)
    except SystemExit as end:  # argparse has printed what it had to say
        return end.code if isinstance(end.code, int) else USAGE
    except OpError as error:
        print(f"rfflow ctl: {error}", file=sys.stderr)
        return USAGE
    try:
        control = _find_control(args.control, needs_owner=document is not None)
        if document is None:
            return _print_status(control)
        return _ask(control, document, args.timeout)
    except OpError as error:
        print(f"rfflow ctl: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("rfflow ctl: not waiting any longer; the op stays in the control directory.", file=sys.stderr)
        return NOT_YET


def _parser() -> argparse.ArgumentParser:
    ctl = f"{typed_command()} ctl"
    parser = argparse.ArgumentParser(
        prog=ctl,
        description="Stop, resume, clone or delete runs of the experiment that is going, or see how they stand.",
        epilog=_EXAMPLES.format(ctl=ctl),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.error = _wrong_usage  # type: ignore[method-assign,assignment]
    verbs = [*VERBS, "status"]
    parser.add_argument("verb", nargs="?", metavar=f"{{{','.join(verbs)}}}", help="what to do")
    parser.add_argument("words", nargs="*", metavar="RUN|all|key=value", help="runs, and for clone Hydra overrides")
    parser.add_argument("--best", metavar="N", help="instead of numbers: the best N (or N%%) runs")
    parser.add_argument("--worst", metavar="N", help="instead of numbers: the worst N (or N%%) runs")
    parser.add_argument("--by", metavar="METRIC", help="rank by this metric (default: the objective)")
    parser.add_argument("--direction", choices=["minimize", "maximize"], help="which way METRIC is good")
    parser.add_argument("--warm-start", action="store_true", help="clone: start from the parent's weights")
    parser.add_argument("--control", type=Path, metavar="DIR", help="the control directory (default: found)")
    parser.add_argument(
        "--timeout", type=_seconds, default=60.0, metavar="SECONDS", help="how long to wait for the answer (default 60)"
    )
    return parser


def _wrong_usage(message: str) -> None:
    raise OpError(f"{message[:1].upper()}{message[1:].rstrip('.')}. How it is used: {typed_command()} ctl --help")


def _check_usage(args: argparse.Namespace, unknown: Sequence[str], parser: argparse.ArgumentParser) -> None:
    """Answer what is no verb, and no flag, by the nearest.

    Raises:
        OpError: with what to type.
    """
    verbs = [*VERBS, "status"]
    ctl = f"{typed_command()} ctl"
    for word in unknown:
        name, _, value = word.lstrip("-").partition("=")
        options = [option for action in parser._actions for option in action.option_strings if option[:2] == "--"]
        near = difflib.get_close_matches(f"--{name}", options, 1, 0.7)
        hint = f"Did you mean {near[0]}?" if near else f"Overrides have no dashes: {name}={value or '...'}"
        raise OpError(f"There is no {word.partition('=')[0]}. {hint} How it is used: {ctl} --help")
    if args.verb is None:
        raise OpError(f"What to do? Type {ctl} status, or stop, resume, clone or delete. How: {ctl} --help")
    if args.verb not in verbs:
        near = difflib.get_close_matches(args.verb, verbs, 1, 0.6)
        meant = _ALIKE.get(args.verb) or (near[0] if near else None)
        hint = f"Did you mean {meant}? " if meant else ""
        raise OpError(f"There is no {args.verb!r}. {hint}Allowed: {', '.join(verbs)}.")


def _seconds(text: str) -> float:
    value = float(text)
    if not value >= 0:
        raise ValueError(text)
    return value


# --- what is asked ----------------------------------------------------------------------------------------------------


def _document(args: argparse.Namespace) -> dict[str, Any]:
    """Return the op document that the command line means, checked as the engine will check it."""
    is_clone = args.verb == "clone"
    overrides = [word for word in args.words if is_clone and ("=" in word or word.startswith("~"))]
    selection = _selection(args, [word for word in args.words if word not in overrides])
    if is_clone and not overrides and not args.warm_start:
        raise OpError(
            f"clone {' '.join(args.words)} would repeat its parent. Give overrides, such as lr=5e-4, or --warm-start "
            "to train on from the parent's weights."
        )
    document = {"op": args.verb, "run": selection}
    if is_clone:
        document["overrides"] = overrides
    if is_clone or args.warm_start:
        document["warm_start"] = args.warm_start
    parse(document)
    return document


def _selection(args: argparse.Namespace, words: list[str]) -> Any:
    ranked = {
        key: _number(value) if key in ("best", "worst") else value
        for key in ("best", "worst", "by", "direction")
        if (value := getattr(args, key)) is not None
    }
    if ranked and words:
        raise OpError(f"Give either runs ({' '.join(words)}) or --{next(iter(ranked))}, not both.")
    if ranked:
        return ranked
    if not words:
        raise OpError(f"{args.verb} which runs? Give numbers, all, --best N or --worst N.")
    if words == ["all"]:
        return "all"
    for word in words:
        if not (word.isascii() and word.isdigit()):
            hint = "" if args.verb == "clone" or "=" not in word else " Overrides belong to clone."
            if args.verb == "clone":
                hint = f" An override is key=value: {word}=..." if word.isidentifier() else ""
            raise OpError(f"{word!r} is not a run's number.{hint} Allowed: numbers from 0 up, or all.")
    numbers = [_number(word) for word in words]
    return numbers[0] if len(numbers) == 1 else numbers


def _number(word: str) -> int | str:
    return int(word) if word.isascii() and word.isdigit() and len(word) < 20 else word


# --- whom to ask ------------------------------------------------------------------------------------------------------


def _find_control(given: Path | None, needs_owner: bool) -> Path:
    if given is not None:
        if not given.is_dir():
            raise OpError(f"--control {given} is not a directory.")
        if needs_owner and living_owner(given) is None:
            raise OpError(f"No running experiment answers ops in {given}.{_open_again([given])}")
        return given
    here = Path("control")
    if living_owner(here) is not None:
        return here
    alive = [(path, owner) for path in Path("outputs").glob("*/*/control") if (owner := living_owner(path)) is not None]
    if not alive:
        raise OpError(
            "No experiment is running here (looked at ./control and outputs/*/*/control). "
            "Go to the directory where it was started, or give --control DIR."
            f"{_open_again(Path('outputs').glob('*/*/control'))}"
        )
    if len(alive) > 1:
        raise OpError("More than one experiment is running. Give one of these:\n" + "\n".join(_listed(alive)))
    return alive[0][0]


def _open_again(there: Iterable[Path]) -> str:
    """Say how the newest of some experiments is opened again, if there is one; it then takes ops as ever."""
    roots = [path.parent for path in there if (path.parent / "experiment.json").is_file()]
    if not roots:
        return ""
    newest = max(roots, key=lambda root: (root / "experiment.json").stat().st_mtime)
    return (
        f" {newest} is not running any more. Open it again in another terminal, finished or not, and ask then: "
        f"{typed_command()} resume={shlex.quote(str(newest))}"
    )


def _listed(alive: list[tuple[Path, Owner]]) -> list[str]:
    newest_first = sorted(alive, key=lambda found: str(found[0]), reverse=True)
    return [f"  --control {path}    (process {owner.pid})" for path, owner in newest_first]


# --- asking -----------------------------------------------------------------------------------------------------------


def _ask(
    control: Path,
    document: dict[str, Any],
    timeout: float,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    name = drop(control, document)
    try:
        reply = wait_for_reply(control, name, timeout, sleep=sleep, clock=clock)
    except OpError as error:
        print(f"rfflow ctl: {error}", file=sys.stderr)
        return FAILED
    if reply is None:
        print(
            f"rfflow ctl: not yet: the run is in the middle of its chunk. {control / name} stays and will be "
            f"answered at the chunk's end, in {DONE}/ or {REJECTED}/.",
            file=sys.stderr,
        )
        return NOT_YET
    print("\n".join(map(printable, reply.text.splitlines())), file=sys.stdout if reply.is_applied else sys.stderr)
    return OK if reply.is_applied else FAILED


# --- status -----------------------------------------------------------------------------------------------------------


def _print_status(control: Path) -> int:
    from rfflow.control.status import read_status

    status = read_status(control)
    if status is None:
        raise OpError(f"There is no status in {control} yet.")
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    slots = ("slot",) if (status.get("slots") or 1) > 1 else ()
    for column in ("run", "overrides", "state", *slots, "chunk", "step", "loss", "eval_loss", "parent"):
        table.add_column(column, justify="left" if column in ("overrides", "state") else "right", overflow="fold")
    for run in status.get("runs") or []:
        metrics = run.get("metrics") or {}
        cells = [
            run.get("number"),
            " ".join(run.get("overrides") or []),
            run.get("state"),
            *(["" if run.get("slot") is None else run["slot"]] if slots else []),
            _of(run.get("chunk"), run.get("chunks")),
            _of(run.get("step"), run.get("steps")),
            _metric(metrics.get("loss")),
            _metric(metrics.get("eval_loss")),
            "" if run.get("parent") is None else run["parent"],
        ]
        table.add_row(*(Text(str(cell)) for cell in cells))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    if living_owner(control) is None:
        ending = "not running any more"
    else:
        ending = "waiting for an op" if status.get("waiting") else "running"
    console.print(Text(f"{status.get('experiment')}: {ending} (as of {status.get('updated')})"))
    console.print(table)
    return OK


def _of(done: object, total: object) -> str:
    return "" if done is None else str(done) if total is None else f"{done}/{total}"


def _metric(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else ""
