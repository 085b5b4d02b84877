"""A session with rfflow ctl: start four runs, stop the two worst, clone the best, and let it end.

    python recipes/interactive/session.py [overrides of the experiment]

Everything it does is done by commands that you could type into a second terminal; it prints each before it runs it. The
experiment's own lines appear between them.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator

RFFLOW = [sys.executable, "-m", "rfflow"]
START = ["+recipe=interactive", "--multirun", "lr=3e-3,1e-3,3e-4,1e-4", "control.idle_timeout=5"]
RUNS = 4


def main() -> int:
    show("python -m rfflow " + " ".join([*START, *sys.argv[1:]]))
    command = [*RFFLOW, *START, *sys.argv[1:]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as experiment:
        assert experiment.stdout is not None
        try:
            steer(echoed(experiment.stdout))
        except BaseException:  # a refused command, or Ctrl-C
            experiment.terminate()
            raise
    return experiment.returncode


def steer(lines: Iterator[str]) -> None:
    """Do what somebody would who watches the lines of the experiment."""
    wait_for_chunk(1, lines)
    ctl("status")
    ctl("stop --worst 2")
    ctl("clone --best 1 lr=2e-3,5e-4 --warm-start")
    ctl("status")
    print(flush=True)
    for _ in lines:
        pass


def echoed(lines: Iterator[str]) -> Iterator[str]:
    """Print every line as it comes."""
    for line in lines:
        print(line, end="", flush=True)
        yield line


def wait_for_chunk(chunk: int, lines: Iterator[str]) -> None:
    """Return when every run has reached the end of this chunk."""
    through: set[str] = set()
    for line in lines:
        if found := re.match(rf"chunk {chunk}/\d+  run (\d+)", line):
            through.add(found[1])
        if len(through) == RUNS:
            return
    sys.exit("The experiment ended before it came to that.")


def ctl(words: str) -> None:
    """Ask the running experiment, and wait for its answer: an op is applied at the end of the chunk that is going."""
    show(f"rfflow ctl {words}")
    subprocess.run([*RFFLOW, "ctl", *words.split(), "--timeout", "600"], check=True)


def show(command: str) -> None:
    print(f"\n$ {command}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
