"""What it costs to be able to go on after a crash, and how long going on takes.

    python benchmarks/checkpointing.py                     # the demo's model: about five minutes on two cores
    python benchmarks/checkpointing.py --model tiny        # a model that takes no time to train: the worst case

Two runs train by rfflow as people start it, with a checkpoint at every chunk. A callback times what is done for the
checkpoints from inside, ends the process as SIGKILL would after some chunks, and notes when the first step is logged:
from a fresh start, and from ``resume=``.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CHUNKS_BEFORE_DEATH = 5


class Times:
    """Writes how long training took in this process, and what is done for checkpoints; ends the process once.

    Args:
        folder: gets ``times-<number of the process>.json``.
        dies_after: ends the first process after so many chunks, as SIGKILL would.
    """

    def __init__(self, folder: str, dies_after: int | None = None):
        import psutil

        from rfflow.checkpointing.checkpointer import Checkpointer
        from rfflow.checkpointing.writer import Writer
        from rfflow.worker.training.coroutine import TrainerCoroutine
        from rfflow.worker.training.session import TrainingSession
        from rfflow.worker.worker import Worker

        self._folder = Path(folder)
        self._number = len(list(self._folder.glob("times-*.json")))
        self._dies_after = dies_after if self._number == 0 else None
        self._started = psutil.Process().create_time()
        self._times: dict[str, list[float]] = defaultdict(list)
        self._first_step: float | None = None
        self._bytes: list[int] = []
        self._time("training", TrainerCoroutine, "resume")
        self._time("small files", Worker, "_draft")
        self._time("handing over", Worker, "_commit")
        self._time("experiment.json", Checkpointer, "write")
        self._time("waiting", Writer, "wait")
        self._time("weights for clones", TrainingSession, "keep_weights")

    def on_experiment_start(self) -> None:
        """Forget what came before the first turn."""
        self._times.clear()

    def on_log(self, step: int) -> None:
        """Note when the first step was made."""
        if self._first_step is None and step > 0:
            self._first_step = time.time() - self._started

    def on_chunk_start(self, run: Any) -> None:
        """Count the bytes of the run's last checkpoint."""
        folders = sorted(run.paths.checkpoints.glob("step-*"))
        if folders:
            self._bytes.append(sum(file.stat().st_size for file in folders[-1].iterdir()))

    def on_chunk_end(self, experiment: Any) -> None:
        """End the process, if it is time."""
        done = sum(len(run.chunks) for run in experiment.runs)
        if self._dies_after is not None and done >= self._dies_after:
            self._write()
            os._exit(9)

    def on_experiment_end(self) -> None:
        """Write what was measured."""
        self._write()

    def _write(self) -> None:
        content = {"times": self._times, "first_step": self._first_step, "bytes": self._bytes}
        (self._folder / f"times-{self._number}.json").write_text(json.dumps(content), encoding="utf-8")

    def _time(self, name: str, owner: type, method: str) -> None:
        original, times = getattr(owner, method), self._times

        @functools.wraps(original)
        def timed(*args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                times[name].append(time.perf_counter() - begun)

        setattr(owner, method, timed)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", choices=("smollm2", "tiny"), default="smollm2")
    model = parser.parse_args().model
    with tempfile.TemporaryDirectory(prefix="rfflow-benchmark-") as folder:
        measure(model, Path(folder))


def measure(model: str, folder: Path) -> None:
    """Train two runs of four chunks, once through and once with a crash."""
    overrides = ["+recipe=sft", "evaluate=false", "trainer.args.eval_on_start=false", *_model(model, folder)]
    for name, dies in (("whole", "null"), ("killed", str(CHUNKS_BEFORE_DEATH))):
        target = f"{{_target_: benchmarks.checkpointing.Times, folder: {folder / name}, dies_after: {dies}}}"
        (folder / name).mkdir()
        arguments = [*overrides, f"+callbacks.times={target}", f"hydra.sweep.dir={folder / name / 'experiment'}"]
        _rfflow([*arguments, "--multirun", "lr=1e-3,1e-4"], 0 if name == "whole" else 9)
    _rfflow([f"resume={folder / 'killed' / 'experiment'}"], 0)
    whole = json.loads((folder / "whole" / "times-0.json").read_text())
    fresh, again = (json.loads((folder / "killed" / f"times-{n}.json").read_text())["first_step"] for n in (0, 1))
    times = {name: sum(values) for name, values in whole["times"].items()}
    boundaries = len(whole["times"]["experiment.json"])
    training = times.pop("training")
    print(f"{model}: 2 runs of 4 chunks, {training:.2f} s of training")
    for name, seconds in times.items():
        print(f"  {name:20} {seconds / boundaries * 1000:8.2f} ms a boundary  {seconds / training:8.3%} of training")
    print(
        f"  {'together':20} {sum(times.values()) / boundaries * 1000:8.2f} ms a boundary  "
        f"{sum(times.values()) / training:8.3%} of training"
    )
    print(f"  {'a checkpoint':20} {max(whole['bytes']) / 1e6:8.2f} MB")
    print(
        f"  first new step after {fresh:8.2f} s from a fresh start, {again:.2f} s from resume= ({again / fresh:.2f}x)"
    )


def _model(model: str, folder: Path) -> list[str]:
    if model == "smollm2":
        return ["dataset.max_samples=32", "trainer.args.max_length=64"]
    sys.path.insert(0, str(ROOT))
    from tests.support.tiny import make_data, make_model

    make_model(folder / "model")
    make_data(folder / "sums.jsonl")
    return ["model=hub", f"model.name={folder / 'model'}", "dataset=local", f"dataset.path={folder / 'sums.jsonl'}"]


def _rfflow(arguments: list[str], status: int) -> None:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environ = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-m", "rfflow", *arguments], env=environ, capture_output=True, text=True)
    if done.returncode != status:
        print(done.stdout, done.stderr, file=sys.stderr)
        sys.exit(f"rfflow ended with status {done.returncode} instead of {status}")


if __name__ == "__main__":
    main()
