"""What TensorBoard loads by its entry point. It calls that without a try: nothing that may fail is imported here."""

from __future__ import annotations

from typing import Any

from tensorboard.plugins import base_plugin


class Loader(base_plugin.TBLoader):
    """Makes the tab; TensorBoard logs what :meth:`load` raises, and goes on without it."""

    def load(self, context: Any) -> Any:
        """Return the plugin for TensorBoard's context."""
        from rfflow.dashboard.plugin import RfflowPlugin

        return RfflowPlugin(context)
