"""The two sides, each in a process of its own, as its user would start it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.work import Work

ROOT = Path(__file__).resolve().parent.parent
# The allocator gives back at once what was freed: memory is then what a program holds, and not what glibc keeps for it.
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
# It keeps what was freed, in huge pages: what rfflow/worker/memory/allocator.py asks for, as a script can have it.
KEEP = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=33554432"
    ":glibc.malloc.trim_threshold=8589934592"
}
LIBRARIES = Path(os.environ.get("BENCHMARK_LIBRARIES") or ROOT / ".venv/benchmark-libraries")
"""Where ``make bench`` installs what is in requirements.txt here."""
BYTES_A_UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss


@dataclass(frozen=True)
class Finished:
    """A process that has ended well."""

    started: float
    """Seconds since the epoch."""
    seconds: float
    """Wall time, imports included."""
    cpu: float
    """Processor time, which other programs disturb less."""
    peak: int
    """The most bytes it ever had resident."""


@dataclass(frozen=True)
class Trained:
    """What training some runs came to."""

    seconds: float
    """Wall time of the process, or of the processes one after the other."""
    cpu: float
    """Processor time of the same."""
    first: float
    """Seconds until every run has done its first quarter."""
    peak: int
    adapters: tuple[Path, ...]
    """The files of weights, in the order of the runs."""
    ended: tuple[float, ...] = ()
    """Seconds from the start to the process's end, had this run been its last (plain TRL only)."""
    quarters: tuple[float, ...] = ()
    """Seconds from the start to each run's first quarter (plain TRL only)."""
    cpu_ended: tuple[float, ...] = ()
    """Processor seconds up to the same (plain TRL only)."""
    began: float = 0.0
    """Seconds from the start to the first step of the first run."""
    root: Path = field(default_factory=Path)
    """The experiment's directory (rfflow only)."""


def run_rfflow(
    work: Work,
    folder: Path,
    *,
    chunks: int = 4,
    extra: Sequence[str] = (),
    environ: Mapping[str, str] = MappingProxyType({}),
) -> Trained:
    """Train by ``python -m rfflow --multirun``, with everything that an experiment writes by default."""
    data, root = _rows(work, folder), folder / "experiment"
    command = [sys.executable, "-m", "rfflow", "--multirun", f"hydra.sweep.dir={root}", "name=experiment"]
    process = run_process(
        [*command, *work.overrides(data, chunks), *extra], folder, {"PYTHONPATH": str(ROOT), **environ}, name="rfflow"
    )
    timeline = json.loads((root / "timeline.json").read_text(encoding="utf-8"))
    first = max(chunk["ended"] for chunk in timeline["chunks"] if chunk["chunk"] == 1)
    adapters = tuple(
        root / f"runs/{number}/checkpoints/final/adapter_model.safetensors" for number in range(len(work.rates))
    )
    began = min(chunk["started"] for chunk in timeline["chunks"]) - process.started
    return Trained(
        process.seconds, process.cpu, first - process.started, process.peak, adapters, root=root, began=began
    )


def run_plain(
    work: Work, folder: Path, *, one_process: bool, environ: Mapping[str, str] = MappingProxyType({})
) -> Trained:
    """Train by TRL alone, the runs one after the other."""
    jobs = work.jobs(_rows(work, folder), folder / "plain")
    adapters = tuple(Path(job["output"]) / "adapter_model.safetensors" for job in jobs)
    before, cpu_before, peak = 0.0, 0.0, 0
    ended: list[float] = []
    cpu_ended: list[float] = []
    quarters: list[float] = []
    began: list[float] = []
    for number, batch in enumerate([jobs] if one_process else [[job] for job in jobs]):
        list_file, report = folder / f"jobs-{number}.json", folder / f"report-{number}.json"
        list_file.write_text(json.dumps(batch), encoding="utf-8")
        script = Path(__file__).with_name("plain_trl.py")
        command = [sys.executable, str(script), str(list_file), str(report)]
        process = run_process(command, folder, environ, name=f"plain-{number}")
        moments = json.loads(report.read_text(encoding="utf-8"))
        began += [before + moment["began"] - process.started for moment in moments]
        quarters += [before + moment["quarter"] - process.started for moment in moments]
        if one_process:  # it has yet to leave, as rfflow has
            leaving = process.started + process.seconds - moments[-1]["ended"]
            ended += [moment["ended"] - process.started + leaving for moment in moments]
            cpu_ended += [moment["cpu"] + process.cpu - moments[-1]["cpu"] for moment in moments]
        else:  # the next begins when this one has ended, not when its adapter is saved
            ended.append(before + process.seconds)
            cpu_ended.append(cpu_before + process.cpu)
        before, cpu_before, peak = before + process.seconds, cpu_before + process.cpu, max(peak, process.peak)
    return Trained(
        before,
        cpu_before,
        quarters[-1],
        peak,
        adapters,
        ended=tuple(ended),
        quarters=tuple(quarters),
        cpu_ended=tuple(cpu_ended),
        began=began[0],
    )


def run_hydra(work: Work, folder: Path, launcher: Sequence[str]) -> Trained:
    """Train by TRL in a Hydra application, under a launcher that comes with Hydra or a plugin."""
    jobs = work.jobs(_rows(work, folder), folder / "plain")
    listed = folder / "jobs.json"
    listed.write_text(json.dumps(jobs), encoding="utf-8")
    numbers = ",".join(map(str, range(len(jobs))))
    script = Path(__file__).with_name("hydra_trl.py")
    command = [sys.executable, str(script), "--multirun", f"+jobs={listed}", f"+number={numbers}", *launcher]
    # A plugin is imported by every Hydra application that finds it: the other sides must not.
    path = {"PYTHONPATH": str(LIBRARIES)} if launcher else {}
    process = run_process([*command, f"hydra.sweep.dir={folder}/multirun"], folder, path, name="hydra")
    adapters = tuple(Path(job["output"]) / "adapter_model.safetensors" for job in jobs)
    return Trained(process.seconds, process.cpu, process.seconds, process.peak, adapters)


def run_process(
    command: Sequence[str], folder: Path, environ: Mapping[str, str] | None = None, *, name: str = "process"
) -> Finished:
    """Run a command in ``folder`` and wait for it.

    Raises:
        SystemExit: if it fails, with the end of what it printed.
    """
    log = folder / f"{name}.log"
    with log.open("w", encoding="utf-8") as output:
        used = folder / f"{name}.usage.json"
        started, clock = time.time(), time.perf_counter()
        process = subprocess.run(
            [sys.executable, "-S", str(Path(__file__).with_name("apart.py")), str(used), *command],
            cwd=folder,
            env=_environ(folder, environ),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        seconds = time.perf_counter() - clock
    if process.returncode:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-30:])
        raise SystemExit(f"{' '.join(command)}\nended with status {process.returncode}:\n{tail}")
    usage = json.loads(used.read_text(encoding="utf-8"))
    return Finished(started, seconds, usage["cpu"], usage["peak"] * BYTES_A_UNIT)


def _environ(folder: Path, extra: Mapping[str, str] | None) -> dict[str, str]:
    """Both sides get the same: one thread, no network, and caches that are empty when a measurement begins."""
    environ: dict[str, Any] = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environ |= {
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(folder / "datasets-cache"),
        "RFFLOW_CACHE": str(folder / "rfflow-cache"),
    }
    return environ | dict(extra or {})


def _rows(work: Work, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "rows.jsonl"
    data.write_text("".join(work.rows()), encoding="utf-8")
    return data
