"""The launcher ``rfflow`` for Hydra. Hydra imports this at every start, of every application: it has to stay light.

Annotations are not strings here: Hydra loads the module before it is in ``sys.modules``, where dataclasses would look.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class RfflowLauncher(Launcher):
    """Trains the runs of a sweep at once; the jobs of any other application it runs one after the other."""

    def __init__(self) -> None:
        self._sweep: Any = None
        self.refill: Any = None
        """What gives more jobs as runs end (``rfflow.search.sweeping.Refill``); a sweeper may set it."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Look at the sweep's directory: any sweeper calls this before it writes there."""
        from rfflow.launch.process import settle
        from rfflow.launch.sweep import Sweep

        settle()
        self._sweep = Sweep(hydra_context, task_function, config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run one batch of jobs; a later batch adds its runs to the same experiment."""
        assert self._sweep is not None
        self._sweep.refill = self.refill or self._sweep.refill
        return self._sweep.launch(job_overrides, initial_job_idx)


class RunDirectory(Callback):
    """Looks at the directory of a single run before Hydra writes there; of those Hydra tells no launcher."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """End the program where the directory holds an experiment that nobody asked to go on with."""
        from rfflow.launch.start import check_directory

        if (said := check_directory(config)) is not None:
            sys.stderr.write(f"{said}\n")
            sys.exit(1)  # an exception of a callback Hydra turns into a warning


@dataclass
class RfflowLauncherConf:
    """``hydra/launcher=rfflow`` has no settings: those of an experiment are in its configuration."""

    _target_: str = "hydra_plugins.rfflow_launcher.RfflowLauncher"


def _open_sections(*names: str) -> DictConfig:
    """Sections to which an override may add a key without Hydra's plus.

    TRL's, PEFT's and ``from_pretrained``'s arguments are too many to list in conf/ and change between versions. What is
    in these sections is checked later, where the nearest names can be offered.
    """
    sections = OmegaConf.create({name: {} for name in names})
    for name in names:
        OmegaConf.set_struct(sections[name], False)
    return sections


_store = ConfigStore.instance()
_store.store(
    group="hydra/launcher",
    name="rfflow",
    node={"launcher": RfflowLauncherConf, "callbacks": {"rfflow": {"_target_": f"{__name__}.RunDirectory"}}},
    package="hydra",
    provider="rfflow",
)
_store.store(
    name="rfflow_evaluation_sections",
    node=_open_sections("corpus", "retriever", "reranker", "prompt", "generator", "pipeline", "metrics", "stats"),
    package="_global_",
    provider="rfflow",
)
_store.store(
    name="rfflow_open_sections",
    node=_open_sections(
        "model", "dataset", "peft", "trainer", "evaluation", "objective", "engine", "control", "limits", "prices"
    ),
    provider="rfflow",
)
