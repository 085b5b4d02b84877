"""The promise: in a gang a run ends as the same TRL script alone would, to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rfflow.config.spec import RunSpec
from rfflow.worker.gangs import gang
from rfflow.worker.gangs.calibration import Choices
from rfflow.worker.gangs.gang import Gang
from rfflow.worker.gangs.passes import Pass
from rfflow.worker.gangs.trunk import Trunk
from tests.support.plain import train_alone
from tests.support.tiny import make_rows, run_spec, write_jsonl
from tests.worker.gangs.together import prepared, train

Make = Callable[..., RunSpec]

ALL = {"r": 8, "lora_alpha": 32, "target_modules": "all-linear", "lora_dropout": 0.2}
VARIANTS: dict[str, dict[str, object]] = {
    "as it is": {"args": {"learning_rate": 3e-3}},
    "rank, alpha, targets, dropout": {"args": {"learning_rate": 1e-3}, "peft": ALL},
    "length, batch and accumulation": {
        "args": {
            "learning_rate": 1e-2,
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 3,
            "max_length": 24,
            "max_steps": 6,
        },
        "peft": {"target_modules": ["down_proj", "k_proj"], "lora_dropout": 0.0},
    },
    "schedule": {
        "args": {
            "lr_scheduler_type": "cosine",
            "warmup_steps": 5,
            "weight_decay": 0.1,
            "per_device_train_batch_size": 8,
        },
        "peft": {"r": 32, "use_rslora": True},
    },
    "one length for all rows": {"args": {"packing": True, "packing_strategy": "wrapped", "max_length": 96}},
}


@pytest.fixture
def spec(tiny_model: Path, tiny_data: Path) -> Make:
    """Make a run of two chunks on the tiny model."""

    def make(**kwargs: object) -> RunSpec:
        return run_spec(tiny_model, tiny_data, evaluate=False, chunks=2, **kwargs)  # type: ignore[arg-type]

    return make


@pytest.mark.parametrize(
    "args",
    [
        {},
        pytest.param({"activation_checkpointing": True}, marks=pytest.mark.slow),
        pytest.param({"bf16": True}, marks=pytest.mark.slow),
        {"bf16": True, "activation_checkpointing": True},
    ],
    ids=["", "recomputed", "autocast", "both"],
)
def test_weights_and_losses_are_those_of_the_runs_alone(spec: Make, tmp_path: Path, args: dict[str, object]) -> None:
    """All variants through one base in one pass."""
    specs = [_with(spec(**variant), **args) for variant in VARIANTS.values()]
    specs = [_with(one, max_steps=min(12, int(one.trainer.args.get("max_steps", 12)))) for one in specs]
    with prepared(specs, tmp_path) as sessions:
        together, they = train(sessions)
    assert they.passes >= 12
    for number, (name, one) in enumerate(zip(VARIANTS, specs, strict=True)):
        outcome = together[number]
        assert not isinstance(outcome, BaseException), (name, outcome)
        assert not outcome.differences(train_alone(one, tmp_path / "alone" / str(number))), name


@pytest.fixture(scope="session")
def preferences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows with a prompt, a chosen and a rejected completion."""
    rows = [
        {"prompt": row["prompt"], "chosen": row["completion"], "rejected": row["completion"][::-1] + "?"}
        for row in make_rows(24)
    ]
    return write_jsonl(tmp_path_factory.mktemp("preferences") / "pairs.jsonl", rows)


def test_preference_runs_share_the_pass_of_their_reference(
    spec: Make, tiny_model: Path, preferences: Path, tmp_path: Path
) -> None:
    """DPO asks for its reference without the adapter, and SFT beside it for none."""
    args = {"per_device_train_batch_size": 2, "max_steps": 8, "max_length": 96}
    kinds: list[tuple[dict[str, object], dict[str, object]]] = [
        ({"beta": 0.1, "learning_rate": 1e-3}, {}),
        ({"beta": 0.5, "learning_rate": 3e-3}, ALL),
        ({"loss_type": "ipo", "gradient_accumulation_steps": 2, "max_steps": 4}, {}),
    ]
    specs = [
        run_spec(
            tiny_model,
            preferences,
            args={**args, **more},
            peft=peft,
            chunks=2,
            evaluate=False,
            trainer="trl.DPOTrainer",
            args_target="trl.DPOConfig",
        )
        for more, peft in kinds
    ]
    specs.append(spec(args={"max_steps": 10}))
    with prepared(specs, tmp_path) as sessions:
        together, they = train(sessions)
    assert they.passes >= 16
    for number, one in enumerate(specs):
        outcome = together[number]
        assert not isinstance(outcome, BaseException), outcome
        assert not outcome.differences(train_alone(one, tmp_path / "alone" / str(number))), number


def vowels(completions: list[str], **_: object) -> list[float]:
    """Reward what chance writes now and then."""
    return [float(sum(letter in "aeiou" for letter in completion)) for completion in completions]


@pytest.mark.slow
def test_the_losses_of_grpo_share_a_pass(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    """What it generates, and the log-probabilities that it compares with, are its own business."""
    base = {
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "max_completion_length": 12,
        "max_steps": 4,
        "learning_rate": 1e-3,
    }
    specs = []
    for more in ({"beta": 0.0}, {"beta": 0.1, "learning_rate": 3e-3}, {"num_iterations": 2}):
        one = run_spec(
            tiny_model,
            tiny_data,
            args={**base, **more},
            chunks=1,
            evaluate=False,
            trainer="trl.GRPOTrainer",
            args_target="trl.GRPOConfig",
        )
        args = {name: value for name, value in one.trainer.args.items() if name != "max_length"}
        rewards = {"reward_funcs": ["tests.worker.gangs.test_exactness.vowels"]}
        specs.append(replace(one, trainer=replace(one.trainer, args=args, kwargs=rewards)))
    with prepared(specs, tmp_path) as sessions:
        together, they = train(sessions)
    assert they.passes >= 4
    for number, one in enumerate(specs):
        outcome = together[number]
        assert not isinstance(outcome, BaseException), outcome
        assert not outcome.differences(train_alone(one, tmp_path / "alone" / str(number))), number


def test_one_that_fails_leaves_the_others_as_they_were(spec: Make, tmp_path: Path) -> None:
    """Its rows are in passes that the others have yet to go back through."""
    specs = [spec(args={"max_steps": 8, "gradient_accumulation_steps": 1 + number % 2}) for number in range(3)]
    fails = {"_target_": "tests.worker.training.test_exactness.FailAt", "step": 3}
    specs[1] = replace(specs[1], trainer=replace(specs[1].trainer, callbacks=(fails,)))
    with prepared(specs, tmp_path) as sessions:
        together, _ = train(sessions)
    assert isinstance(together[1], RuntimeError)
    for number in (0, 2):
        outcome = together[number]
        assert not isinstance(outcome, BaseException)
        assert not outcome.differences(train_alone(specs[number], tmp_path / "alone" / str(number)))


@pytest.mark.parametrize(
    ("forward", "backward"), [(2, 9), *(pytest.param(*at, marks=pytest.mark.slow) for at in ((9, 3), (1, 9), (3, 1)))]
)
def test_a_pass_that_does_not_fit_changes_nothing(
    spec: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forward: int, backward: int
) -> None:
    """It is halved, at last done one by one, with the same dropout: behind the first half of the layers, and back."""
    specs = [
        spec(
            args={"max_steps": 4, "gradient_accumulation_steps": 2, "activation_checkpointing": number == 1},
            peft={**ALL, "r": 4 * (number + 1), "lora_dropout": 0.1 * number},
        )
        for number in range(4)
    ]
    go, add = Trunk.forward, Gang._add_gradients

    def forward_within(self: Trunk, current: Pass) -> object:
        found = go(self, current)
        if len(current.calls) > forward:
            raise MemoryError("too many")
        return found

    def add_within(self: Gang, gone: object, settings: object) -> None:
        if len(gone.places) > backward:  # type: ignore[attr-defined]
            raise RuntimeError("out of memory")
        add(self, gone, settings)  # type: ignore[arg-type]

    monkeypatch.setattr(Trunk, "forward", forward_within)
    monkeypatch.setattr(Gang, "_add_gradients", add_within)
    with prepared(specs, tmp_path) as sessions:
        together, _ = train(sessions)
    for number, one in enumerate(specs):
        outcome = together[number]
        assert not isinstance(outcome, BaseException), outcome
        assert not outcome.differences(train_alone(one, tmp_path / "alone" / str(number))), number


def test_one_whose_own_backward_pass_fails_fails_alone(
    spec: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that stays when its pass is down to its rows is its own."""
    add = Gang._add_gradients

    def add_without_the_first(self: Gang, gone: object, settings: object) -> None:
        if any(place.run == 0 for place in gone.places):  # type: ignore[attr-defined]
            raise RuntimeError("its rows")
        add(self, gone, settings)  # type: ignore[arg-type]

    specs = [spec(args={"max_steps": 4, "learning_rate": 1e-3 * (number + 1)}) for number in range(3)]
    monkeypatch.setattr(Gang, "_add_gradients", add_without_the_first)
    with prepared(specs, tmp_path) as sessions:
        together, _ = train(sessions)
    assert str(together[0]) == "its rows"
    for number in (1, 2):
        outcome = together[number]
        assert not isinstance(outcome, BaseException)
        assert not outcome.differences(train_alone(specs[number], tmp_path / "alone" / str(number)))


@pytest.mark.parametrize("fails_at", ["sum", "assignment"])
def test_gradients_that_cannot_be_added_are_as_if_there_were_none(
    spec: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: str
) -> None:
    """An error behind a pass, when some of its gradients are there already: it is done again, and one run fails."""
    specs = [spec(args={"max_steps": 4, "gradient_accumulation_steps": 2}) for _ in range(3)]
    specs = [_with(one, learning_rate=1e-3 * (number + 1)) for number, one in enumerate(specs)]
    add = gang._sum

    def add_but_not_to_the_second(old: torch.Tensor | None, new: torch.Tensor) -> torch.Tensor:
        if old is not None and any(old is weight.grad for weight in weights):
            if fails_at == "sum":
                raise RuntimeError("its gradients")
            return add(old, new)[:1]
        return add(old, new)

    monkeypatch.setattr(gang, "_sum", add_but_not_to_the_second)
    with prepared(specs, tmp_path) as sessions:
        trained = (one for one in sessions[1].coroutine.trainer.model.parameters() if one.requires_grad)
        weights = list(trained)[-1:]
        together, _ = train(sessions)
    assert isinstance(together[1], RuntimeError)
    assert ("its gradients" if fails_at == "sum" else "assign a gradient") in str(together[1])
    for number in (0, 2):
        outcome = together[number]
        assert not isinstance(outcome, BaseException)
        assert not outcome.differences(train_alone(specs[number], tmp_path / "alone" / str(number)))


def test_what_cannot_be_taken_out_of_a_pass_is_done_by_halves(
    spec: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ``auto``, which looks at each run's part when the pass is over."""
    specs = [spec(args={"max_steps": 3, "learning_rate": 1e-3 * (number + 1)}) for number in range(3)]
    look = Gang._is_exact_forward

    def look_at_few(self: Gang, current: Pass, output: torch.Tensor, places: object) -> bool:
        if len(current.calls) > 2:
            raise MemoryError("no room to look")
        return look(self, current, output, places)  # type: ignore[arg-type]

    monkeypatch.setattr(Gang, "_is_exact_forward", look_at_few)
    with prepared(specs, tmp_path) as sessions:
        together, _ = train(sessions, Choices())
    for number, one in enumerate(specs):
        outcome = together[number]
        assert not isinstance(outcome, BaseException), outcome
        assert not outcome.differences(train_alone(one, tmp_path / "alone" / str(number)))


def _with(spec: RunSpec, **args: object) -> RunSpec:
    return replace(spec, trainer=replace(spec.trainer, args={**spec.trainer.args, **args}))
