"""``rfflow ui [DIR]``: TensorBoard on this machine alone, with the address of rfflow's tab."""

from __future__ import annotations

import sys
import threading
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from rfflow.dashboard.finding import find
from rfflow.files import shown, typed_command

_PUBLIC = ("--bind_all", "--host")


_HELP = """\
usage: {ui} [DIR] [--open] [what TensorBoard takes: --port 6007, --path_prefix /tb, ...]

Start TensorBoard, for this machine alone, and say where rfflow's tab is.

  DIR     an experiment, or what lies above several (default: outputs)
  --open  open the tab in a browser"""


def main(argv: Sequence[str]) -> int:
    """Serve until Ctrl-C; return the exit status."""
    if {"-h", "--help"} & set(argv):
        print(_HELP.format(ui=f"{typed_command()} ui"))
        return 0
    is_opened, others = "--open" in argv, [word for word in argv if word != "--open"]
    where = others.pop(0) if others and not others[0].startswith("-") else "outputs"
    folder = Path(where).expanduser()
    if not folder.is_dir():
        print(f"rfflow ui: there is no folder {folder}. Experiments lie under outputs/.", file=sys.stderr)
        return 1
    if given := [word for word in others if word.partition("=")[0] in _PUBLIC]:
        print(
            f"rfflow ui serves this machine alone, so {given[0]} is not for it. From another: ssh -L "
            f"6006:localhost:6006 here; or tensorboard --logdir {folder} {' '.join(others)}",
            file=sys.stderr,
        )
        return 2
    if (address := _start(folder, others)) is None:
        return 1
    found = len(find(str(folder)))
    told = {0: "no experiment yet", 1: "one experiment"}.get(found, f"{found} experiments")
    print(f"{address}  ({told} in {shown(folder)}; Ctrl-C ends it)", flush=True)
    if is_opened:
        webbrowser.open(address)
    try:
        _wait()
    except KeyboardInterrupt:
        print()
    return 0


def _wait() -> None:
    threading.Event().wait()


def _start(folder: Path, others: Sequence[str]) -> str | None:
    """Start TensorBoard in a thread; return the tab's address, None where it has said why it cannot."""
    from tensorboard import default, program

    tensorboard = program.TensorBoard(default.get_plugins())
    try:
        tensorboard.configure(("tensorboard", "--logdir", str(folder), *others))
        return f"{tensorboard.launch()}#rfflow"
    except program.TensorBoardServerException as error:
        print(f"rfflow ui: {error.msg}", file=sys.stderr)
        return None
