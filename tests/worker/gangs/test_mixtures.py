"""Random runs in a gang: each ends as alone, whoever is beside it and whatever fails."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
from trl import SFTTrainer

from rfflow.config.spec import RunSpec
from rfflow.worker.gangs.gang import Gang
from rfflow.worker.gangs.passes import Pass
from rfflow.worker.gangs.trunk import Trunk
from tests.support.plain import train_alone
from tests.support.tiny import run_spec
from tests.worker.gangs.together import prepared, train

SEEDS = [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 12))]
"""Those behind the first are slow for their number alone."""


def draw(chance: random.Random, model: Path, data: Path) -> RunSpec:
    """Draw a run of two steps."""
    steps = chance.choice([1, 2])
    peft = {
        "r": chance.choice([1, 4, 7, 16]),
        "lora_alpha": chance.choice([1, 8, 32]),
        "target_modules": chance.choice(["all-linear", ["q_proj", "v_proj"], ["down_proj"], ["k_proj", "up_proj"]]),
        "lora_dropout": chance.choice([0.0, 0.1, 0.5]),
    }
    args = {
        "per_device_train_batch_size": chance.choice([1, 2, 5]),
        "max_length": chance.choice([24, 40, 64]),
        "gradient_accumulation_steps": steps,
        "activation_checkpointing": chance.random() < 0.3,
        "learning_rate": chance.choice([1e-3, 1e-2]),
        "seed": chance.randrange(100),
        "max_steps": 2,
    }
    return run_spec(model, data, args=args, peft=peft, chunks=1, evaluate=False)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_mixture_ends_with_the_bits_of_each_alone(
    tiny_model: Path, tiny_data: Path, tmp_path: Path, seed: int
) -> None:
    """All together, and in a gang without the last: the rest end the same."""
    chance = random.Random(seed)
    specs = [draw(chance, tiny_model, tiny_data) for _ in range(3)]
    alone = [train_alone(one, tmp_path / "alone" / str(number)) for number, one in enumerate(specs)]
    for name, some in (("all", specs), ("fewer", specs[:-1])):
        with prepared(some, tmp_path / name) as sessions:
            together, gang = train(sessions)
        assert gang.passes >= 2
        for number, one in enumerate(some):
            outcome = together[number]
            assert not isinstance(outcome, BaseException), outcome
            assert not outcome.differences(alone[number]), (number, one)


@pytest.mark.parametrize("seed", SEEDS)
def test_passes_and_members_that_fail_at_random_change_nobody_else(
    tiny_model: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Passes of several fail on their ways there and back, and a run fails between the two."""
    chance = random.Random(seed)
    specs = [draw(chance, tiny_model, tiny_data) for _ in range(3)]
    forward, add, loss = Trunk.forward, Gang._add_gradients, SFTTrainer.compute_loss

    def forward_at_times(self: Trunk, current: Pass) -> Any:
        found = forward(self, current)
        if len(current.calls) > 1 and chance.random() < 0.3:
            raise MemoryError("forward")
        return found

    def add_at_times(self: Gang, gone: Any, settings: Any) -> None:
        if len(gone.places) > 1 and chance.random() < 0.9:
            raise RuntimeError("out of memory")
        add(self, gone, settings)

    def loss_but_once(self: SFTTrainer, *args: Any, **kwargs: Any) -> Any:
        found = loss(self, *args, **kwargs)
        if self is fails[0] and next(losses) == 1:
            raise ValueError("its own fault")
        return found

    with prepared(specs, tmp_path) as sessions, monkeypatch.context() as patch:
        fails, losses = [sessions[1].coroutine.trainer], itertools.count()
        patch.setattr(Trunk, "forward", forward_at_times)
        patch.setattr(Gang, "_add_gradients", add_at_times)
        patch.setattr(SFTTrainer, "compute_loss", loss_but_once)
        together, _ = train(sessions)
    assert str(together[1]) == "its own fault"
    for number in (0, 2):
        outcome = together[number]
        assert not isinstance(outcome, BaseException), outcome
        assert not outcome.differences(train_alone(specs[number], tmp_path / "alone" / str(number))), specs[number]
