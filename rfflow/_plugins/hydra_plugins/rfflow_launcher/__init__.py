"""The launcher ``rfflow`` for Hydra. Hydra imports this at every start, of every application: it has to stay light.

Annotations are not strings here: Hydra loads the module before it is in ``sys.modules``, where dataclasses would look.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class RfflowLauncher(Launcher):
    """Trains the runs of a sweep at once; the jobs of any other application it runs one after the other."""

    def __init__(self) -> None:
        self._setup: dict[str, Any] = {}
        self._sweep: Any = None
        self.refill: Any = None
        """What gives more jobs as runs end (``rfflow.search.sweeping.Refill``); a sweeper may set it."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Remember what Hydra says before the first :meth:`launch`; nothing of a sweep is written yet."""
        from rfflow.process import settle

        settle()
        self._setup = {"hydra_context": hydra_context, "task_function": task_function, "config": config}

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run one batch of jobs; a later batch adds its runs to the same experiment."""
        if self._sweep is None:
            from rfflow.launcher import Sweep

            self._sweep = Sweep(**self._setup)
            self._sweep.refill = self.refill
        return self._sweep.launch(job_overrides, initial_job_idx)


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
_store.store(group="hydra/launcher", name="rfflow", node=RfflowLauncherConf, provider="rfflow")
_store.store(
    name="rfflow_open_sections",
    node=_open_sections("model", "dataset", "peft", "trainer", "evaluation", "objective", "engine", "control"),
    provider="rfflow",
)
