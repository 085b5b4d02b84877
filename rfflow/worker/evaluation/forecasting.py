"""What a generator is about to take, of one that can say so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rfflow.evals.prompts import Messages
from rfflow.runs.forecast import Forecast


def forecast_of(generator: Any, prompts: Sequence[Messages]) -> Forecast:
    """Return what a generator says of these prompts, by its ``forecast(prompts)``; nothing where it has none."""
    foresee = getattr(generator, "forecast", None)
    found = foresee(prompts) if callable(foresee) else Forecast()
    return found if isinstance(found, Forecast) else Forecast()
