"""The live table in a notebook: one output of the cell, drawn again as the runs get on."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console, RenderableType

WIDTH, HEIGHT = 110, 60
"""Characters and lines; a cell is about as wide, and may be longer."""
_FRAME = '<pre style="white-space:pre;overflow-x:auto;line-height:1.3;font-family:monospace">{code}</pre>'


def is_notebook() -> bool:
    """Whether this is the kernel of a notebook, whose outputs can be drawn again."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


class NotebookOutput:
    """One output of the cell that runs now."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, make: Callable[[Console], RenderableType]) -> None:
        """Show something in place of what was shown before.

        Args:
            make: makes it, for a console that tells how much room there is.
        """
        from IPython.display import HTML, display  # type: ignore[import-not-found,unused-ignore]

        console = Console(
            file=io.StringIO(), record=True, width=WIDTH, height=HEIGHT, force_terminal=True, highlight=False
        )
        console.print(make(console))
        text = HTML(console.export_html(inline_styles=True, code_format=_FRAME))
        if self._handle is None:
            self._handle = display(text, display_id=True)
        else:
            self._handle.update(text)
