"""Any Trainer: TRL's others, and those that users write themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForSequenceClassification
from trl import SFTConfig, SFTTrainer

from rfflow.runs import RunState
from rfflow.spec import RunSpec
from tests.tiny import make_rows, run_spec, write_jsonl
from tests.training.plain import train_alone
from tests.training.test_dpo import preferences
from tests.training.test_exactness import train_together

Spec = Callable[..., RunSpec]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of answers, each good or not."""
    rows = [{**row, "label": index % 3 > 0} for index, row in enumerate(make_rows(24))]
    return write_jsonl(tmp_path_factory.mktemp("labelled") / "train.jsonl", rows)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of preferences."""
    return write_jsonl(tmp_path_factory.mktemp("pairs") / "train.jsonl", preferences(24))


def test_kto_equals_the_same_scripts_alone(tiny_model: Path, labelled: Path, tmp_path: Path) -> None:
    def spec(**args: Any) -> RunSpec:
        return run_spec(
            tiny_model, labelled, args=args, chunks=3, trainer="trl.KTOTrainer", args_target="trl.KTOConfig"
        )

    precomputed = {"precompute_ref_log_probs": True, "train_sampling_strategy": "sequential"}
    specs = [spec(), spec(beta=0.3), spec(**precomputed), spec(**precomputed, learning_rate=1e-2)]
    runs, together = train_together(specs, tmp_path / "experiment")
    assert [(run.state, run.error) for run in runs] == [(RunState.COMPLETED, None)] * 4
    for number, variant in enumerate(specs):
        assert not together[str(number)].differences(train_alone(variant, tmp_path / "alone" / str(number))), number


def test_reward_models_get_a_head_of_their_own(tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    """The base is shared; the new head is trained beside the adapter, and saved with it."""
    head = {"auto_class": "AutoModelForSequenceClassification", "num_labels": 1}
    specs = [
        run_spec(
            tiny_model,
            pairs,
            args={"learning_rate": rate},
            model_kwargs=head,
            chunks=2,
            trainer="trl.RewardTrainer",
            args_target="trl.RewardConfig",
        )
        for rate in (1e-2, 1e-3)
    ]
    runs, together = train_together(specs, tmp_path)
    assert [(run.state, run.error) for run in runs] == [(RunState.COMPLETED, None)] * 2
    trained = {name for name in together["0"].weights if "score" in name}
    assert trained and together["0"].differences(together["1"])
    loaded = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1)
    loaded.load_adapter(str(runs[0].paths.final))


@dataclass
class WeightedConfig(SFTConfig):
    """A user's arguments."""

    loss_scale: float = 1.0


class WeightedTrainer(SFTTrainer):
    """A user's trainer: hands on what it does not know."""

    def __init__(self, *args: Any, offset: float = 0.0, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.offset = offset

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Scale TRL's loss."""
        loss = super().compute_loss(model, inputs, False, num_items_in_batch)
        return loss * self.args.loss_scale + self.offset


def test_a_users_own_trainer_and_arguments(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    """Its own argument of the constructor, its own field of the arguments, TRL's peft_config behind ``**kwargs``."""
    here = "tests.training.test_other_trainers"
    own = {"trainer": f"{here}.WeightedTrainer", "args_target": f"{here}.WeightedConfig"}
    specs = [run_spec(tiny_model, tiny_data, args={"loss_scale": scale, "max_steps": 6}, **own) for scale in (1.0, 0.5)]
    plain = run_spec(tiny_model, tiny_data, args={"max_steps": 6})
    offset = replace(specs[0], trainer=replace(specs[0].trainer, kwargs={"offset": 5.0}))
    runs, together = train_together([*specs, plain, offset], tmp_path / "experiment")
    assert [(run.state, run.error) for run in runs] == [(RunState.COMPLETED, None)] * 4
    assert not together["1"].differences(train_alone(specs[1], tmp_path / "alone"))
    losses = [outcome.history[0]["loss"] for _, outcome in sorted(together.items())]
    assert losses[0] == pytest.approx(2 * losses[1], rel=1e-5) and losses[3] == pytest.approx(losses[2] + 5, rel=1e-5)
    assert not together["0"].differences(together["2"])
