"""rfflow trains all the configurations of a Hydra sweep at once, a chunk of the data at a time."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rfflow.errors import ConfigError, RunFailed
    from rfflow.launch.notebook import sweep
    from rfflow.launch.train import run, train
    from rfflow.results.runs_table import open
    from rfflow.runs.experiment import Callback

__version__ = "0.1.0"
__all__ = ["Callback", "ConfigError", "RunFailed", "__version__", "open", "run", "sweep", "train"]

_HOME = {
    "Callback": "runs.experiment",
    "ConfigError": "errors",
    "RunFailed": "errors",
    "open": "results.runs_table",
    "run": "launch.train",
    "sweep": "launch.notebook",
    "train": "launch.train",
}


def __getattr__(name: str) -> Any:
    """Import what is promised when it is asked for: ``rfflow --help`` and Hydra's plug-in search stay quick."""
    if name not in _HOME:
        raise AttributeError(f"module 'rfflow' has no attribute {name!r}")
    return getattr(import_module(f"rfflow.{_HOME[name]}"), name)


# In a checkout Hydra finds the launcher here; installed, it lies beside rfflow and the folder does not exist.
_plugins = Path(__file__).parent / "_plugins"
if _plugins.is_dir() and str(_plugins) not in sys.path:
    sys.path.append(str(_plugins))
