"""Standard streams that are closed, full, or lose their reader: in processes of their own, without torch."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import textwrap
from typing import Any

import pytest

PROGRAM = """
    import logging, os, sys
    from rfflow.tracking.streams import outlive_viewers
    logging.basicConfig(stream=sys.stdout, format="%(message)s")
    outlive_viewers()
    outlive_viewers()
    sys.stdin.readline()
    for number in range(3):
        print("line", number, "\\u2500 \\u2605 \\u2026", flush=True)
        logging.warning("log %d", number)
    with open(os.devnull) as file:
        assert file.fileno() > 2, "a file has the number of a standard stream"
    print("the last one")  # and Python itself writes it at the end
    sys.exit(7)
"""


def start(*flags: str, program: str = PROGRAM, **kwargs: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, *flags, "-c", textwrap.dedent(program)]
    return subprocess.Popen(command, **{"stdin": subprocess.PIPE, "stderr": subprocess.PIPE, **kwargs})


@pytest.mark.parametrize("flags", [(), ("-u",)], ids=["", "unbuffered"])
def test_a_reader_may_go_away(flags: tuple[str, ...]) -> None:
    """It is said once, whatever else writes there does not fail, and the exit status stays the program's own."""
    program = PROGRAM.replace("sys.exit", "os.write(1, b'by a library'); sys.exit")
    process = start(*flags, program=program, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.communicate(b"\n")[1] == b"Standard output cannot be written to (Broken pipe). All else goes on.\n"
    assert process.returncode == 7


def test_a_terminal_may_be_closed() -> None:
    """All of it is gone then: there is nobody to say it to."""
    ours, theirs = pty.openpty()
    process = start(stdout=theirs, stderr=theirs)
    os.close(theirs)
    os.close(ours)
    process.communicate(b"\n")
    assert process.returncode == 7


@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", "<&- >&-", "2>&-", ">/dev/full", ">/dev/full 2>&1"])
def test_streams_may_be_closed_or_full(closed: str) -> None:
    program = textwrap.dedent(PROGRAM).replace("sys.stdin.readline()", "")
    status = subprocess.run(["sh", "-c", f'"$0" -c "$1" {closed}', sys.executable, program], capture_output=True)
    assert status.returncode == 7
    assert b"Error" not in status.stderr


def test_what_an_encoding_has_not_is_shown_by_the_nearest() -> None:
    """An ASCII terminal has no lines; what Python could not decode comes back as the bytes that it was."""
    program = """
        import sys
        from rfflow.tracking.streams import outlive_viewers
        outlive_viewers()
        print("\\u2500\\u2500 \\u2605 a\\u2026 \\u00e9 \\udcff")
    """
    process = start(program=program, stdout=subprocess.PIPE, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert process.communicate()[0] == b"-- * a~ ? \xff\n"


def test_a_pipe_that_does_not_block_is_waited_for() -> None:
    """Some remote shells leave it so: Python would fail as soon as it is full."""
    program = """
        import os, sys
        from rfflow.tracking.streams import outlive_viewers
        os.set_blocking(1, False)
        outlive_viewers()
        for number in range(3000):
            print("x" * 99, flush=True)
    """
    process = start(program=program, stdout=subprocess.PIPE)
    assert len(process.communicate()[0]) == 300_000 and process.returncode == 0


def test_streams_of_a_notebook_are_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    from rfflow.tracking.streams import outlive_viewers

    before = sys.stdout, sys.stderr
    outlive_viewers()
    assert (sys.stdout, sys.stderr) == before
