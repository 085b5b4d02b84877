"""Preference and reward trainers go on from a snapshot as SFT does: GRPO where a generation cycle has ended."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rfflow.config.spec import RunSpec
from rfflow.worker.shared import Shared
from tests.support.plain import train_alone
from tests.worker.training.test_dpo import VARIANTS as DPO_VARIANTS
from tests.worker.training.test_dpo import evaluation_pairs, pairs
from tests.worker.training.test_dpo import spec as dpo_spec
from tests.worker.training.test_exactness import outcomes
from tests.worker.training.test_grpo import VARIANTS as GRPO_VARIANTS
from tests.worker.training.test_grpo import evaluation_prompts, prompts
from tests.worker.training.test_grpo import spec as grpo_spec
from tests.worker.training.test_snapshot import begin, finish, shared, snapshots_of

__all__ = ["dpo_spec", "evaluation_pairs", "evaluation_prompts", "grpo_spec", "pairs", "prompts", "shared"]


def check(spec: RunSpec, tmp_path: Path, shared: Shared, *, between: bool) -> None:
    """Go on from the first and the last place that allows it, and compare with TRL alone."""
    first = begin(spec, tmp_path / "first", shared)
    taken = [one for one in snapshots_of(first, tmp_path / "snapshots", between=between) if one[0]]
    first.close()
    alone = train_alone(spec, tmp_path / "alone")
    assert taken
    for step, folder in {taken[0], taken[-1]}:
        with outcomes() as ended:
            finish(begin(spec, tmp_path / f"from {step}", shared, checkpoint=folder))
        assert not ended[f"from {step}"].differences(alone), f"from step {step} of {[step for step, _ in taken]}"


@pytest.mark.parametrize("name", ["two steps a generation", "two iterations", "two epochs"])
def test_grpo(name: str, grpo_spec: Callable[..., RunSpec], tmp_path: Path, shared: Shared) -> None:
    variant: dict[str, Any] = {"chunks": 2, "evaluate": False, **GRPO_VARIANTS[name]}
    check(grpo_spec(**variant), tmp_path, shared, between=True)


@pytest.mark.parametrize("name", ["as it is", "precomputed, found, with dropout"])
def test_dpo(name: str, dpo_spec: Callable[..., RunSpec], tmp_path: Path, shared: Shared) -> None:
    variant: dict[str, Any] = {"chunks": 2, "evaluate": False, **DPO_VARIANTS[name]}
    check(dpo_spec(**variant), tmp_path, shared, between=False)
