"""What tests draw by chance: the same each time, so that nobody's change fails by another's luck.

``RFFLOW_TEST_SEED=7`` (or ``random``) draws other things, everywhere. Tests that are marked ``slow`` always do. The
seed is printed where a test fails; given back, it repeats the draw.
"""

from __future__ import annotations

import os
import random

USUAL = 20261121


def drawn_anew() -> bool:
    """Whether somebody asks for other draws than the usual ones."""
    return "RFFLOW_TEST_SEED" in os.environ


def seed(usual: int | None = USUAL) -> int:
    """Return the seed to draw from, and print it; ``None`` is another one each time."""
    asked = os.environ.get("RFFLOW_TEST_SEED", "random" if usual is None else str(usual))
    number = random.SystemRandom().randrange(10**9) if asked == "random" else int(asked)
    print(f"RFFLOW_TEST_SEED={number}")
    return number
