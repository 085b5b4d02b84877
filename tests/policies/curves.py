"""Learning curves for tests of policies: losses by run and chunk."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from rfflow.policies.simulation import Curve

NAN = float("nan")


def curves(*losses: Sequence[float], config: Sequence[dict[str, Any]] = (), **fails_at: int) -> list[Curve]:
    """Return a run for each sequence of losses; ``r2=1`` lets run 2 fail in its second chunk."""
    return [
        Curve(
            number,
            tuple({"loss": loss, "eval_loss": loss} for loss in values),
            config[number] if config else {"lr": 10.0**-number},
            fails_at.get(f"r{number}"),
        )
        for number, values in enumerate(losses)
    ]


def random_curves(seed: int, runs: int, chunks: int, trouble: bool = True) -> list[Curve]:
    """Return power laws with noise, of which some diverge and some fail."""
    draw = random.Random(seed)
    made = []
    for number in range(runs):
        floor, rate = draw.uniform(0.5, 2), draw.uniform(0.2, 1)
        losses = [floor + (chunk + 1) ** -rate + draw.gauss(0, 0.02) for chunk in range(chunks)]
        fate = draw.random() if trouble else 1
        if fate < 0.1:
            at = draw.randrange(chunks)
            losses[at:] = [NAN] * (chunks - at)
        metrics = tuple({"loss": loss, "eval_loss": loss} for loss in losses)
        made.append(Curve(number, metrics, {"lr": 10.0**-number}, draw.randrange(chunks) if 0.1 < fate < 0.2 else None))
    return made
