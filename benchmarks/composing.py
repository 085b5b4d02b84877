"""``python composing.py <what follows "rfflow">``: compose every job of a sweep, and leave before any is built."""

from __future__ import annotations

import os
import sys

from rfflow.__main__ import main
from rfflow.launch.sweep import Sweep


def leave(self: Sweep, jobs: object) -> None:
    """Stand in for the training."""
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    setattr(Sweep, "_train", leave)  # noqa: B010 - mypy knows no assignment to a method
    sys.exit(main())
