"""Training on what the model itself generates: reward functions, generation cycles, and equality with TRL alone."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rfflow.config.spec import GenerateSpec, RunSpec
from rfflow.errors import ConfigError
from rfflow.runs.run import RunState
from rfflow.worker.rewards.models import reward_model
from tests.support.plain import train_alone
from tests.support.tiny import make_rows, run_spec, write_jsonl
from tests.worker.training.test_exactness import train_together

Spec = Callable[..., RunSpec]
HERE = "tests.worker.training.test_grpo"


def few_vowels(completions: list[str], **_: Any) -> list[float]:
    """Reward text with few vowels: something that a random model can learn."""
    return [-sum(letter in "aeiou" for letter in text) / (len(text) + 1) for text in completions]


def like_the_answer(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    """Reward letters of the row's own column."""
    return [len(set(text) & set(wanted)) / len(set(wanted)) for text, wanted in zip(completions, answer, strict=True)]


def one_short(completions: list[str], **_: Any) -> list[float]:
    """A user's mistake."""
    return [0.0] * (len(completions) - 1)


def not_a_number(completions: list[str], **_: Any) -> list[float]:
    """Another."""
    return [float("nan")] * len(completions)


def nothing_to_say(completions: list[str], **_: Any) -> list[None]:
    """Legal beside another function, useless alone."""
    return [None] * len(completions)


def words(completions: list[str], **_: Any) -> list[str]:
    """Not rewards at all."""
    return ["good"] * len(completions)


def needs_solution(completions: list[str], solution: list[str], **_: Any) -> list[float]:
    """Asks for a column that is not there."""
    return [float(text == wanted) for text, wanted in zip(completions, solution, strict=True)]


def fails_later(completions: list[str], trainer_state: Any, **_: Any) -> list[float]:
    """Works when it is tried, and not while it trains."""
    if trainer_state.global_step >= 2:
        raise KeyError("bug")
    return [float(len(text)) for text in completions]


async def few_vowels_later(completions: list[str], **given: Any) -> list[float]:
    """The same, for those who ask a server."""
    await asyncio.sleep(0)
    return few_vowels(completions, **given)


async def never(completions: list[str], **_: Any) -> list[float]:
    """A server that is not there."""
    raise ConnectionError("refused")


class Judge:
    """An object with something to keep, awaited or not."""

    def __init__(self, answers: int | None):
        self.answers = answers

    async def __call__(self, completions: list[str], **_: Any) -> list[float | None]:
        """Say too little, or nothing."""
        return [None] * len(completions) if self.answers is None else [0.0] * self.answers


ARGS = {
    "max_completion_length": 6,
    "num_generations": 2,
    "learning_rate": 1e-2,
    "beta": 0.1,
}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of prompts with the answer beside them."""
    rows = [{"prompt": row["prompt"], "answer": row["completion"]} for row in make_rows(12)]
    return write_jsonl(tmp_path_factory.mktemp("prompts") / "train.jsonl", rows)


@pytest.fixture(scope="module")
def evaluation_prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second file to evaluate on."""
    rows = [{"prompt": row["prompt"], "answer": row["completion"]} for row in make_rows(4)]
    return write_jsonl(tmp_path_factory.mktemp("prompts") / "eval.jsonl", rows)


@pytest.fixture
def spec(tiny_model: Path, prompts: Path, evaluation_prompts: Path) -> Spec:
    """Make a GRPO run with the functions named."""

    def make(*functions: str, args: dict[str, Any] | None = None, algorithm: str = "GRPO", **kwargs: Any) -> RunSpec:
        run = run_spec(
            tiny_model,
            prompts,
            dataset={"eval_path": str(evaluation_prompts)},
            trainer=f"trl.{algorithm}Trainer",
            args_target=f"trl.{algorithm}Config",
            **kwargs,
        )
        values = {key: value for key, value in run.trainer.args.items() if key != "max_length"}
        named = [name if "." in name or "/" in name else f"{HERE}.{name}" for name in functions or ("few_vowels",)]
        trainer = replace(run.trainer, args={**values, **ARGS, **(args or {})}, kwargs={"reward_funcs": named})
        return replace(run, trainer=trainer)

    return make


VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "no reference": {"args": {"beta": 0.0}},
    "two steps a generation": {"args": {"steps_per_generation": 2}, "chunks": 3},
    "two iterations": {"args": {"num_iterations": 2, "epsilon": 0.1}, "chunks": 3},
    "accumulated": {"args": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}},
    "cycle and accumulation": {"args": {"gradient_accumulation_steps": 2, "steps_per_generation": 3}, "chunks": 1},
    "another loss": {"args": {"loss_type": "dr_grpo", "temperature": 0.7}, "peft": {"r": 8}},
    "dropout": {"args": {"disable_dropout": False}},
    "every weight": {"peft": None, "args": {"max_steps": 3}},
    "two epochs": {"args": {"num_train_epochs": 2, "steps_per_generation": 2}, "chunks": 3},
}


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> str:
    """The folder of a reward model."""
    folder = tmp_path_factory.mktemp("judge") / "model"
    with torch.random.fork_rng():
        torch.manual_seed(5)
        AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return str(folder)


def test_interleaved_runs_equal_the_same_scripts_alone(spec: Spec, tmp_path: Path, judge: str) -> None:
    """Sampling, rewards, weights and log history, evaluated at boundaries: equal to the last bit."""
    specs = {name: spec(**{"chunks": 2, **variant}) for name, variant in VARIANTS.items()}
    weighted = {"reward_weights": [1.0, 0.25]}
    specs["two rewards"] = spec("few_vowels", "like_the_answer", chunks=2, args=weighted)
    specs["awaited"] = spec("few_vowels_later", "few_vowels_later", chunks=2)
    specs["a reward model"] = spec("few_vowels", judge, chunks=2)
    specs["the same again"] = spec(judge, chunks=2, args={"learning_rate": 1e-3})
    specs["RLOO"] = spec(chunks=2, algorithm="RLOO")
    answered = GenerateSpec(2, max_new_tokens=2, scores=("rfflow.scores.rouge_l",), kwargs={"do_sample": True})
    specs["answering at boundaries"] = replace(spec(chunks=2), generate=answered)
    runs, together = train_together(list(specs.values()), tmp_path / "experiment")
    assert [(run.state, run.error) for run in runs] == [(RunState.COMPLETED, None)] * len(specs)
    for number, (name, variant) in enumerate(specs.items()):
        alone = train_alone(variant, tmp_path / "alone" / str(number))
        assert not together[str(number)].differences(alone), name
    metrics = runs[list(specs).index("two rewards")].metrics
    assert {"rewards/few_vowels/mean", "rewards/like_the_answer/mean", "eval_reward"} <= metrics.keys()
    assert all(0 < run.metrics["generation_share"] < 1 for run in runs)
    assert "eval_rouge_l" in runs[-1].metrics


@pytest.mark.parametrize(
    ("args", "chunks", "ends"),
    [
        ({}, 3, (2, 4, 6)),
        ({"steps_per_generation": 2}, 3, (2, 4, 6)),
        ({"steps_per_generation": 2}, 2, (4, 6)),
        ({"num_iterations": 3}, 2, (9, 18)),
        ({"num_iterations": 3}, 6, (3, 6, 9, 12, 15, 18)),
        ({"gradient_accumulation_steps": 2, "steps_per_generation": 4}, 1, (2,)),
    ],
)
def test_chunks_end_with_generation_cycles(
    spec: Spec, tmp_path: Path, args: dict[str, Any], chunks: int, ends: tuple[int, ...]
) -> None:
    """12 prompts twice in batches of 4: six steps, times the iterations."""
    args = {**args, "max_completion_length": 1}
    (run,), _ = train_together([spec(args=args, chunks=chunks, evaluate=False)], tmp_path)
    assert run.plan is not None and run.plan.ends == ends


def test_chunks_that_would_cut_a_cycle_are_refused(spec: Spec, tmp_path: Path) -> None:
    said = "chunks is 4, but an epoch has only 6 optimizer steps, in 3 generation cycles of 2, which are not cut. "
    with pytest.raises(ConfigError, match=said + "Allowed: 1 to 3"):
        train_together([spec(args={"steps_per_generation": 2}, chunks=4)], tmp_path)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("one_short", "one_short returned 3 values for 4 completions"),
        ("not_a_number", "not_a_number returned NaN for all of 4 completions"),
        ("nothing_to_say", "nothing_to_say returned None for every one of 4 rows"),
        ("words", "words returned 'good' for completion 0"),
        ("needs_solution", "needs_solution raised TypeError: .*'solution'.* the columns answer"),
        ("never", "never raised ConnectionError: refused. It was called with 4 completions"),
        ("few_vowel", "has no 'few_vowel'. Did you mean 'few_vowels'"),
        ("missing/rewards.py:reward", "no such file"),
    ],
)
def test_a_reward_function_is_tried_before_training(spec: Spec, tmp_path: Path, function: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        train_together([spec("few_vowels", function) if function != "nothing_to_say" else spec(function)], tmp_path)


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ({"_target_": f"{HERE}.Judge", "answers": 3}, "Judge returned 3 values for 4 completions"),
        ({"_target_": f"{HERE}.Judge", "answers": None}, "Judge returned None for every one of 4 rows"),
        ({"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 1}, r"is a Linear, a module that transf"),
        ("no/such-model", "whose slash makes it the name of a reward model, and that cannot be loaded: OSError"),
        ("./no-such-model", "no such file"),
        ("{tiny_model}", "a model without score.weight: its rewards would be random"),
        ("{endless}", "says nan where a number is wanted"),
    ],
)
def test_judges_are_tried_before_training(
    spec: Spec, tmp_path: Path, tiny_model: Path, judge: str, node: Any, said: str
) -> None:
    """What is awaited, and reward models."""
    if node == "{endless}":
        model = AutoModelForSequenceClassification.from_pretrained(judge)
        model.score.weight.data.fill_(float("nan"))
        model.save_pretrained(tmp_path / "endless")
        AutoTokenizer.from_pretrained(judge).save_pretrained(tmp_path / "endless")
    if isinstance(node, str):
        node = node.format(tiny_model=tiny_model, endless=tmp_path / "endless")
    run = spec()
    run = replace(run, trainer=replace(run.trainer, kwargs={"reward_funcs": [node]}))
    with pytest.raises(ConfigError, match=said):
        train_together([run], tmp_path / "experiment")


def test_an_adapter_of_a_reward_model_judges(tiny_model: Path, tmp_path: Path) -> None:
    """What trainer=reward saves, head and all; whoever asks for it again gets the same weights."""
    base = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1)
    trained = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", r=2, init_lora_weights=False)).eval()
    trained.save_pretrained(tmp_path / "final")
    one, other = (reward_model(str(tmp_path / "final"), "here", {}) for _ in range(2))
    ids = torch.arange(3, 11)[None]
    with torch.inference_mode():
        assert torch.equal(one(ids).logits, trained(ids).logits)
    assert one is not other and all(map(operator.is_, one.parameters(), other.parameters()))


def test_a_function_may_be_silent_beside_another(spec: Spec, tmp_path: Path) -> None:
    (run,), _ = train_together([spec("few_vowels", "nothing_to_say", chunks=1, args={"max_steps": 1})], tmp_path)
    assert run.state is RunState.COMPLETED, run.error


def test_a_reward_function_that_fails_later_fails_its_run_alone(spec: Spec, tmp_path: Path) -> None:
    runs, _ = train_together([spec("fails_later", chunks=1), spec(chunks=1)], tmp_path)
    assert [run.state for run in runs] == [RunState.FAILED, RunState.COMPLETED]
    assert "The reward function fails_later raised KeyError: 'bug'" in str(runs[0].error)


def test_rewards_come_from_a_file_too(spec: Spec, tmp_path: Path) -> None:
    """With arguments beside the ``_target_``, under the function's own name in the curves."""
    file = tmp_path / "my_rewards.py"
    file.write_text(
        "class Short:\n"
        "    def __init__(self, limit):\n"
        "        self.limit = limit\n"
        "    def __call__(self, completions, **_):\n"
        "        return short(completions, self.limit)\n"
        "def short(completions, limit=1, **_):\n"
        "    return [float(len(c) < limit) for c in completions]\n"
    )
    run = spec(chunks=1, args={"max_steps": 1})
    nodes = [{"_target_": f"{file}:{name}", "limit": 99} for name in ("short", "Short")]
    run = replace(run, trainer=replace(run.trainer, kwargs={"reward_funcs": nodes}))
    (trained,), _ = train_together([run], tmp_path / "experiment")
    assert trained.metrics["rewards/short/mean"] == trained.metrics["rewards/Short/mean"] == 1.0
    misspelt = replace(run.trainer, kwargs={"reward_funcs": [{"_target_": f"{file}:short", "limt": 9}]})
    with pytest.raises(ConfigError, match=r"reward_funcs\[0\]\.limt is 9, .*Did you mean 'limit'"):
        train_together([replace(run, trainer=misspelt)], tmp_path / "misspelt")
    nameless = replace(run, trainer=replace(run.trainer, kwargs={"reward_funcs": [f"{file}:Short"]}))
    with pytest.raises(ConfigError, match=r"cannot make .*my_rewards.py:Short: TypeError: .* 'limit'"):
        train_together([nameless], tmp_path / "nameless")
    wrong = replace(run, trainer=replace(run.trainer, kwargs={"reward_funcs": [f"{file}:shrt"]}))
    with pytest.raises(ConfigError, match=r"there is no function or class 'shrt'. .* There: Short, short"):
        train_together([wrong], tmp_path / "wrong")


def test_what_does_not_divide_is_refused_before_training(spec: Spec, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must be divisible by num_generations \(3\)"):
        train_together([spec(args={"num_generations": 3})], tmp_path / "generations")
    with pytest.raises(ConfigError, match="2 reward_weights for 1 reward_funcs"):
        train_together([spec(args={"reward_weights": [1.0, 2.0]})], tmp_path / "weights")
    with pytest.raises(ConfigError, match="12 rows, but one generation takes 16 different prompts"):
        train_together([spec(args={"steps_per_generation": 8})], tmp_path / "rows")
