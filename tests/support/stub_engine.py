"""An engine that trains nothing, for tests of what stands before it; it notes what it was asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hydra.core.hydra_config import HydraConfig

from rfflow.config.spec import ExperimentSpec, RunSpec
from rfflow.launch.jobs import Composer
from rfflow.runs.paths import ExperimentPaths, RunPaths
from rfflow.runs.run import Run, RunState


@dataclass
class StubEngine:
    spec: ExperimentSpec
    paths: ExperimentPaths
    composer: Composer
    runs: list[Run] = field(default_factory=list)
    failing: dict[int, Exception] = field(default_factory=dict)
    refusing: Exception | None = None
    closed: int = 0
    job_numbers: list[int | None] = field(default_factory=list)
    """``hydra.job.num`` as seen when each run was added."""

    @property
    def experiment(self) -> Any:
        return SimpleNamespace(runs=self.runs)

    def add(self, spec: RunSpec, number: int, overrides: tuple[str, ...] = (), run_dir: Path | None = None) -> Run:
        paths = RunPaths(run_dir) if run_dir else self.paths.run(number)
        run = Run(number, spec, overrides, paths)
        self.runs.append(run)
        self.job_numbers.append(HydraConfig.get().job.get("num"))
        return run

    def run(self) -> None:
        if self.refusing:
            raise self.refusing
        for run in self.runs:
            if run.state is RunState.QUEUED:
                run.move_to(RunState.RUNNING)
                run.error = self.failing.get(run.number)
                run.move_to(RunState.FAILED if run.error else RunState.COMPLETED)

    def save(self, *, is_finished: bool) -> None:
        """There is nothing to go on with."""

    def objective(self, run: Run) -> float | None:
        return float(run.number)

    def close(self) -> None:
        self.closed += 1
