"""How many runs there is memory for at once: a pass keeps what the steps of all of them keep."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rfflow.worker.gangs.qualifying import recomputes
from rfflow.worker.memory.offload import trained_bytes
from rfflow.worker.memory.sizes import show_bytes
from rfflow.worker.shared import Shared
from rfflow.worker.training import activations
from rfflow.worker.training.longest import longest_batch
from rfflow.worker.training.session import TrainingSession

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Share:
    """What a run takes while it is in a step, in bytes."""

    own: int = 0
    """Its tensors and gradients, and what its optimizer will add."""
    kept: float = 0.0
    """For its way back, at the longest batch; nothing where that is not known."""
    loss: float = 0.0
    """By its loss, which is computed when no other is."""


def share_of(session: TrainingSession, shared: Shared) -> Share:
    """Return what a run takes; what a pass keeps is measured once for all that differ in other things."""
    trainer, holdings = session.coroutine.trainer, session.holdings
    assert holdings is not None
    own = holdings.bytes + holdings.coming + trained_bytes(trainer)
    batch = kept = None
    with session.context.active():
        try:
            batch = longest_batch(trainer)
            kept = None if batch is None else shared.kept_by(session.spec, trainer)
        except Exception as error:  # of rows or a model of another kind than those that are known
            log.info("What a step keeps cannot be measured: %s: %s", type(error).__name__, error)
    if batch is None or kept is None:
        return Share(own)
    hidden = 2 * kept.layer * batch.rows * batch.tokens  # what it goes on from alone, and the gradient of that
    there = kept.with_recomputed(sum(recomputes(trainer)), batch) + hidden
    return Share(own, there, activations.loss_bytes(trainer, batch))


def groups(shares: Mapping[int, Share], free: float) -> list[list[int]]:
    """Divide runs, in their order, into such as there is room for at once.

    Args:
        shares: what each takes, by its number.
        free: bytes that are there for what runs own, and for their steps.
    """
    found: list[list[int]] = []
    for run in shares:
        if found and fits([shares[one] for one in (*found[-1], run)], free):
            found[-1].append(run)
        else:
            found.append([run])
    return found


def fits(shares: Iterable[Share], free: float) -> bool:
    """Whether there is room for some runs at once; arguments as for :func:`groups`."""
    shares = list(shares)
    room = activations.SHARE * (free - sum(one.own for one in shares)) - max(one.loss for one in shares)
    return sum(one.kept for one in shares) <= room


def told(shares: Mapping[int, Share], found: list[list[int]], free: float) -> str:
    """Say which runs go together, and why not all."""
    which = "; ".join(", ".join(map(str, group)) for group in found)
    free -= sum(one.own for one in shares.values())
    kept = sum(one.kept for one in shares.values())
    return (
        f"Runs go through their base by turns ({which}): together their steps would keep {show_bytes(kept)}, and "
        f"{show_bytes(max(0.0, free))} are free"
    )
