"""A run that does not fit unless its activations are recomputed, under ``ulimit -d``: kept, and as rfflow chooses.

    python benchmarks/short_of_memory.py                  # SmolLM2-135M, 2 x 512 tokens, 4.2 GB

Each is a whole command, in a process that may have so many bytes of data; three minutes on a core.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.work import Work, make_work

STEPS = 2


def main() -> None:
    """Train twice, and say how each ended and what it took at most."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=float, default=4.2, metavar="GB", help="bytes of data a process may have")
    parser.add_argument("--batch", type=int, default=2, help="rows of a batch")
    parser.add_argument("--length", type=int, default=512, help="tokens of a row at most")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        work = _long_rows(make_work("smollm2", STEPS, folder).batches_of(given.batch), folder)
        for choice in (False, "auto"):
            args = {**work.args, "max_length": given.length, "activation_checkpointing": choice}
            code, peak, told = _train(replace(work, args=args), folder / str(choice), given.limit)
            print(f"activation_checkpointing={choice}: exit code {code}, {peak:.2f} GB resident at most")
            for line in told:
                print(f"    {line}")


def _long_rows(work: Work, folder: Path) -> Work:
    """Give every row the answers of its neighbours, so that it is as long as a row may be."""
    rows = [json.loads(line) for line in work.data.read_text(encoding="utf-8").splitlines()]
    count, data = STEPS * work.args["per_device_train_batch_size"], folder / "long.jsonl"
    long = [
        {**row, "completion": " ".join(next_["completion"] for next_ in rows[at : at + 12])}
        for at, row in enumerate(rows[:count])
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in long), encoding="utf-8")
    return replace(work, data=data)


def _train(work: Work, folder: Path, limit: float) -> tuple[int, float, list[str]]:
    """Return the exit code, the most gigabytes that were resident, and what the log says about memory."""
    folder.mkdir()
    most = int(limit * 1e9)
    command = [sys.executable, "-m", "rfflow", *work.overrides(work.data, 1), "hydra.sweep.dir=experiment"]
    began = subprocess.Popen(
        [*command, "--multirun"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (most, most)),
    )
    _, status, usage = _wait(began)
    log = folder / "experiment/runs/0/run.log"
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    told = [line for line in lines if re.search("Activations|[Oo]ut of memory", line)]
    return status, usage.ru_maxrss * 1024 / 1e9, list(dict.fromkeys(line[:160] for line in told[:1] + told[-1:]))


def _wait(process: subprocess.Popen[bytes]) -> tuple[int, int, Any]:
    number, status, usage = os.wait4(process.pid, 0)
    return number, os.waitstatus_to_exitcode(status), usage


if __name__ == "__main__":
    main()
