"""Any Trainer: TRL's others, and those that users write themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from transformers import AutoModelForSequenceClassification
from trl import SFTConfig, SFTTrainer

from rfflow.config.spec import RunSpec
from rfflow.errors import ConfigError
from rfflow.runs.run import RunState
from tests.launch.test_cli import Shell
from tests.support.plain import train_alone
from tests.support.tiny import make_rows, run_spec, write_jsonl
from tests.worker.training.test_dpo import preferences
from tests.worker.training.test_exactness import train_together

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


def test_labels_are_true_or_false(tiny_model: Path, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [{**row, "label": "good"} for row in make_rows(8)])
    run = run_spec(tiny_model, file, trainer="trl.KTOTrainer", args_target="trl.KTOConfig")
    with pytest.raises(ConfigError, match=r"the column 'label' holds 'good' in row 0.*Allowed: true for answers"):
        train_together([run], tmp_path / "experiment")


def test_reward_models_equal_the_same_scripts_alone(tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    """The base is shared; the new head is drawn as TRL draws it, trained beside the adapter, and saved with it."""

    def spec(seed: int = 42, peft: dict[str, Any] | None = MappingProxyType({}), **args: Any) -> RunSpec:  # type: ignore[assignment]
        return run_spec(
            tiny_model,
            pairs,
            args={"seed": seed, **args},
            model_kwargs={"auto_class": "AutoModelForSequenceClassification", "num_labels": 1, "head_seed": seed},
            peft=None if peft is None else {"task_type": "SEQ_CLS", **peft},
            chunks=2,
            trainer="trl.RewardTrainer",
            args_target="trl.RewardConfig",
        )

    specs = [spec(learning_rate=1e-2), spec(peft={"r": 8}), spec(seed=7), spec(peft=None, max_steps=3)]
    runs, together = train_together(specs, tmp_path / "experiment")
    assert [(run.state, run.error) for run in runs] == [(RunState.COMPLETED, None)] * 4
    for number, variant in enumerate(specs):
        assert not together[str(number)].differences(train_alone(variant, tmp_path / "alone" / str(number))), number
    assert any("score" in name for name in together["0"].weights)
    loaded = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1)
    loaded.load_adapter(str(runs[0].paths.final))


@pytest.mark.usefixtures("hydra_restore_singletons")
def test_a_reward_models_head_is_drawn_with_its_runs_seed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """So that runs of one seed share a base, and TRL alone would have begun with the same head."""
    monkeypatch.chdir(tmp_path)
    rfflow = Shell(capsys, monkeypatch)
    rfflow("+recipe=dpo", "trainer=reward", "--multirun", "lr=1e-4,1e-5", "seed=1,2")
    models = [run.spec.model for run in rfflow.engines[0].runs]
    assert [model.kwargs["head_seed"] for model in models] == [1, 2, 1, 2]
    assert [model.key == models[0].key for model in models] == [True, False, True, False]


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
    here = "tests.worker.training.test_other_trainers"
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
