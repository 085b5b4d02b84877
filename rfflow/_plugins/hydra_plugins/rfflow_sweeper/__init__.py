"""The sweeper ``rfflow`` for Hydra. Hydra imports this at every start, of every application: it has to stay light.

Annotations are not strings here: Hydra loads the module before it is in ``sys.modules``, where dataclasses would look.
"""

import errno
import os
from dataclasses import dataclass, field
from typing import Any, Optional

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore


class RfflowSweeper(BasicSweeper):
    """Samples where the configuration has a section ``search``; a sweep of commas only stays a grid, as in Hydra."""

    def sweep(self, arguments: list[str]) -> Any:
        """Run the jobs of a sweep."""
        try:
            return self._sweep(arguments)
        except OSError as error:
            assert self.config is not None
            folder = str(self.config.hydra.sweep.dir)
            if error.errno == errno.ENAMETOOLONG or os.access(folder, os.W_OK):
                raise
            from rfflow.errors import ConfigError

            raise ConfigError(
                f"{folder} cannot be written to: {error}. Another directory: hydra.sweep.dir=..."
            ) from error

    def _sweep(self, arguments: list[str]) -> Any:
        assert self.config is not None and self.hydra_context is not None
        words = [*self._parse_config(), *arguments]
        if not self.config.get("search") and not any("interval(" in word for word in words):
            return super().sweep(arguments)  # a grid, for which Optuna need not be imported
        from rfflow.search.sweeping import make_search, run_search

        search = make_search(self.config, self.hydra_context.config_loader, words)
        if search is None:
            return super().sweep(arguments)
        return run_search(self, search)

    def validate_batch_is_legal(self, batch: Any) -> None:
        """Compose every job of a batch, except for our launcher: it does so itself before the first one begins."""
        if not hasattr(self.launcher, "refill"):
            super().validate_batch_is_legal(batch)


@dataclass
class RfflowSweeperConf:
    """What Hydra's own sweeper takes; how to search is said in the section ``search``."""

    _target_: str = "hydra_plugins.rfflow_sweeper.RfflowSweeper"
    max_batch_size: Optional[int] = None  # noqa: UP045  # Hydra reads the annotation
    params: Optional[dict[str, str]] = field(default=None)  # noqa: UP045


ConfigStore.instance().store(group="hydra/sweeper", name="rfflow", node=RfflowSweeperConf, provider="rfflow")
