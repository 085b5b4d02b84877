"""Mix several data sets into one: one after the other, by TRL's fractions, or interleaved by probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
from datasets import Dataset

from rfflow.config.spec import DatasetSpec
from rfflow.worker.data.joining import Source, check_alike


def mixed(sources: Sequence[Source], spec: DatasetSpec, seed: int) -> Dataset:
    """Return the rows of all sources in the order in which they are read.

    Args:
        sources: what is mixed.
        spec: its ``fraction`` of each of ``datasets``, as TRL's ``get_dataset`` takes them; or ``probabilities``,
            ``seed`` and ``stopping_strategy``, as ``datasets.interleave_datasets`` does.
        seed: where ``spec`` has none.

    Raises:
        ConfigError: if the sources do not fit together.
    """
    check_alike(sources)
    rows = [source.rows for source in sources]
    if spec.probabilities is not None or spec.stopping_strategy is not None:
        return datasets.interleave_datasets(
            rows,
            probabilities=list(spec.probabilities) if spec.probabilities else None,
            seed=seed if spec.seed is None else spec.seed,
            stopping_strategy=spec.stopping_strategy or "first_exhausted",
        )
    fractions = [part.fraction for part in spec.datasets if part.fraction is not None]
    if fractions:
        rows = _shares(rows, fractions)
    return rows[0] if len(rows) == 1 else datasets.concatenate_datasets(rows)


def _shares(rows: Sequence[Dataset], fractions: Sequence[float]) -> list[Dataset]:
    """Keep the first rows of each, in these proportions, and as many as the scarcest allows."""
    weights = [fraction / sum(fractions) for fraction in fractions]
    total = min(len(each) / weight for each, weight in zip(rows, weights, strict=True) if weight > 0)
    return [each.select(range(round(weight * total))) for each, weight in zip(rows, weights, strict=True)]
