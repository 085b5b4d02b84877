"""What a trainer calls comes by dotted path, file or node, whatever the argument is called; wrong ones are named."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoTokenizer, EvalPrediction, PreTrainedTokenizerBase, Trainer
from transformers.utils import get_json_schema

from rfflow.config.spec import RunSpec
from rfflow.errors import ConfigError
from rfflow.runs.run import RunState
from rfflow.worker.training.components import Role, make_component, parameters_of, role_of
from tests.support.plain import train_alone
from tests.support.tiny import make_model, run_spec, write_jsonl
from tests.worker.training.test_exactness import train_together

HERE = "tests.worker.training.test_components"
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'


def add(a: int, b: int, scale: int = 1) -> int:
    """Adds two numbers.

    Args:
        a: the first
        b: the second
        scale: by what the sum is multiplied

    Returns:
        The sum.
    """
    return (a + b) * scale


def undocumented(a: int) -> int:
    return a


class Room:
    """An environment: counts what is added in it, and says how good that was."""

    made = 0

    def __init__(self, start: int = 0):
        Room.made += 1
        self.start = self.total = start

    def reset(self, **_: Any) -> str:
        """Begin anew."""
        self.total = self.start
        return f" You have {self.start}."

    def add(self, a: int, b: int) -> str:
        """Adds two numbers to what there is.

        Args:
            a: the first
            b: the second
        """
        self.total += a + b
        return str(self.total)

    def get_reward(self) -> float:
        """Say how far it came."""
        return float(self.total)


class Quiet(Room):
    """One that cannot be shown to a model."""

    def look(self, where: str) -> str:
        return where


def room(start: int = 5) -> Room:
    """Make a room, as a function."""
    return Room(start)


def short(completions: list[Any], **_: Any) -> list[float]:
    """Reward little said."""
    return [1 / (1 + sum(len(message["content"]) for message in completion)) for completion in completions]


def the_same(completions: list[Any], **_: Any) -> list[float]:
    """Reward anything."""
    return [1.0] * len(completions)


def where_it_ended(completions: list[Any], environments: list[Room], **_: Any) -> list[float]:
    """Reward what the environment has become."""
    return [float(environment.total % 7) for environment in environments]


def rollout(prompts: list[str], trainer: Any, word: str = "no") -> dict[str, Any]:
    """Say the same to everything, in as many ways as are asked for."""
    tokenizer, count = trainer.processing_class, len(prompts)
    said = [tokenizer(word + "." * (index % 3))["input_ids"] for index in range(count)]
    return {
        "prompt_ids": [tokenizer("so: ")["input_ids"]] * count,
        "completion_ids": said,
        "logprobs": [[-1.0] * len(ids) for ids in said],
        "length": [len(ids) for ids in said],
    }


def by_length(completions: list[Any], length: list[int], **_: Any) -> list[float]:
    """Reward what the rollout has counted."""
    return [float(count) for count in length]


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that mostly calls the tool ``add``, one token of its own, and then ends its turn."""
    folder = make_model(tmp_path_factory.mktemp("caller") / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([AddedToken(CALL, special=False)])
    tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text()
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        model.resize_token_embeddings(len(tokenizer))
        call, end = len(tokenizer) - 1, tokenizer.eos_token_id
        embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        embeddings[:, 0], embeddings[:, 1], head[:, :2] = 2, 0, 0
        embeddings[call, 0], embeddings[call, 1] = 0, 2
        head[call, 0] = head[end, 1] = 0.6
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def spec(caller: Path, tmp_path: Path) -> Callable[..., RunSpec]:
    """Make a GRPO run on conversations."""
    file = write_jsonl(
        tmp_path / "talks.jsonl", [{"prompt": [{"role": "user", "content": f"Go {index}!"}]} for index in range(4)]
    )

    def make(args: dict[str, Any] | None = None, **kwargs: Any) -> RunSpec:
        run = run_spec(caller, file, chunks=2, trainer="trl.GRPOTrainer", args_target="trl.GRPOConfig")
        given = {key: value for key, value in run.trainer.args.items() if key != "max_length"}
        own = {"max_completion_length": 24, "num_generations": 2, **(args or {})}
        if kwargs.get("tools") or kwargs.get("environment_factory"):
            own["max_tool_calling_iterations"] = 1
        kwargs = {"reward_funcs": [f"{HERE}.short"], **kwargs}
        kwargs = {key: value for key, value in kwargs.items() if value is not None}
        return replace(run, trainer=replace(run.trainer, args={**given, "learning_rate": 1e-2, **own}, kwargs=kwargs))

    return make


@pytest.mark.filterwarnings("ignore:You are using:UserWarning")
def test_tools_environments_and_rollouts_train_as_plain_trl_does(spec: Callable[..., RunSpec], tmp_path: Path) -> None:
    """Four runs at once, each equal to its script alone to the last bit, and the tools were really called."""
    here = str(Path(__file__))
    pairs: list[tuple[RunSpec, dict[str, Any]]] = [
        (spec(tools=[f"{HERE}.add"]), {"tools": [add]}),
        (
            spec(environment_factory=f"{HERE}.Room", reward_funcs=[f"{HERE}.where_it_ended"]),
            {"environment_factory": Room, "reward_funcs": [where_it_ended]},
        ),
        (
            spec(environment_factory={"_target_": f"{HERE}.Room", "start": 3}, reward_funcs=None),
            {"environment_factory": functools.partial(Room, start=3)},
        ),
        (
            spec(rollout_func={"_target_": f"{HERE}.rollout", "word": "yes"}, reward_funcs=[f"{HERE}.by_length"]),
            {"rollout_func": functools.partial(rollout, word="yes"), "reward_funcs": [by_length]},
        ),
    ]
    in_file = spec(environment_factory={"_target_": f"{here}:room", "start": 3}, reward_funcs=None)
    runs, together = train_together([*(run for run, _ in pairs), in_file], tmp_path / "experiment")
    assert [(run.state, run.error) for run in runs] == [(RunState.COMPLETED, None)] * 5
    for number, (run, given) in enumerate(pairs):
        alone = train_alone(run, tmp_path / "alone" / str(number), **given)
        assert together[str(number)].differences(alone) == [], number
    # The same environment, found in a file: a class of another module, and no difference to the bits.
    assert together["4"].differences(together["2"]) == []
    used = [entry["tools/call_frequency"] for entry in together["0"].history if "tools/call_frequency" in entry]
    assert len(used) == 2 and sum(used) > 0


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"tools": [f"{HERE}.ad"]}, r"trainer\.tools\[0\] is '.*\.ad', .*Did you mean 'add'"),
        ({"tools": [3]}, r"trainer\.tools\[0\] is 3. Give the dotted path of a function"),
        ({"tools": [f"{HERE}.undocumented"]}, r"trainer\.tools: undocumented cannot be shown .*no docstring"),
        ({"tools": f"{HERE}.Judge"}, r"has no 'Judge'"),
        ({"environment_factory": f"{HERE}.short"}, r"short\(\) missing 1 required positional argument"),
        ({"environment_factory": {"_target_": f"{HERE}.Room", "strat": 1}}, r"takes no 'strat'. Did you mean 'start'"),
        ({"environment_factory": f"{HERE}.Quiet"}, r"environment_factory: Quiet.look cannot be shown to the model"),
        ({"environment_factory": [f"{HERE}.Room"]}, r"trainer\.environment_factory is \[.*\]\. Give the dotted path"),
        ({"reward_funcs": None}, r"No reward source provided"),
        ({"optimizers": [None, None]}, r"trainer\.optimizers is not read: .*trainer.args.optim"),
        ({"peft_config": {"_target_": "peft.LoraConfig"}}, r"trainer\.peft_config is not read: .*the section peft"),
        ({"model": "x"}, r"trainer\.model is not read: .*model\.name"),
        ({"reward_processing_classes": "nowhere/at/all"}, r"trainer\.reward_processing_classes is 'nowhere/at/all'"),
    ],
)
@pytest.mark.filterwarnings("ignore:You are using:UserWarning")
def test_what_cannot_be_called_is_a_sentence(
    spec: Callable[..., RunSpec], tmp_path: Path, kwargs: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        train_together([spec(**kwargs)], tmp_path)


def test_tools_for_prompts_that_are_text_are_refused(spec: Callable[..., RunSpec], tmp_path: Path) -> None:
    """TRL writes no tools into a text, and trains without a word."""
    run = spec(tools=[f"{HERE}.add"], reward_funcs=[f"{HERE}.the_same"])
    file = write_jsonl(tmp_path / "texts.jsonl", [{"prompt": f"Go {index}!"} for index in range(4)])
    with pytest.raises(ConfigError, match=r"trainer\.tools is given, but the column 'prompt' holds text"):
        train_together([replace(run, dataset=replace(run.dataset, path=str(file)))], tmp_path / "experiment")


class ByName(trl.SFTTrainer):
    """A trainer that loads its model itself, as TRL's asynchronous ones do."""

    def __init__(self, model: str, train_dataset: Any = None):
        raise AssertionError("not to be built")


class Unjudged(trl.SFTTrainer):
    """One that knows of no evaluation."""

    def __init__(
        self, model: Any, args: Any, train_dataset: Any, processing_class: Any, peft_config: Any, callbacks: Any
    ):
        super().__init__(
            model,
            args,
            train_dataset=train_dataset,
            processing_class=processing_class,
            peft_config=peft_config,
            callbacks=callbacks,
        )


def test_a_trainer_that_rfflow_cannot_give_what_it_has_is_refused(
    tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"ByName takes a model by its name alone and loads it itself"):
        train_together([run_spec(tiny_model, tiny_data, trainer=f"{HERE}.ByName")], tmp_path / "name")
    with pytest.raises(ConfigError, match=r"Unjudged takes nothing to evaluate on. Say dataset.eval_size=0"):
        train_together([run_spec(tiny_model, tiny_data, trainer=f"{HERE}.Unjudged", eval_size=8)], tmp_path / "judged")
    run = run_spec(tiny_model, tiny_data, trainer=f"{HERE}.Unjudged", args={"max_steps": 4})
    (trained,), _ = train_together([run], tmp_path / "alone")
    assert trained.state is RunState.COMPLETED, trained.error


class Mine(Trainer):
    """A user's trainer: some arguments of its own, the rest by ``**kwargs``, some without saying what they are."""

    def __init__(
        self,
        *args: Any,
        scorer: PreTrainedTokenizerBase | None = None,
        make_judge: Callable[[], object] | None = None,
        hooks: dict[str, Callable[[int], int]] | None = None,
        anything=None,  # type: ignore[no-untyped-def]
        compute_metrics=None,
        **kwargs: Any,
    ):
        super().__init__(*args, compute_metrics=compute_metrics, **kwargs)


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """A user's metric."""
    return {}


@pytest.mark.parametrize(
    ("trainer", "key", "role"),
    [
        (trl.GRPOTrainer, "tools", Role.CALLED),
        (trl.GRPOTrainer, "rollout_func", Role.CALLED),
        (trl.GRPOTrainer, "environment_factory", Role.FACTORY),
        (trl.GRPOTrainer, "reward_processing_classes", Role.OBJECT),
        (trl.SFTTrainer, "formatting_func", Role.CALLED),
        (trl.SFTTrainer, "compute_loss_func", Role.CALLED),
        (trl.SFTTrainer, "data_collator", Role.CALLED),
        (trl.SFTTrainer, "preprocess_logits_for_metrics", Role.CALLED),
        (trl.SFTTrainer, "optimizer_cls_and_kwargs", Role.CLASS),
        (trl.DistillationTrainer, "tools", Role.CALLED),
        (trl.DistillationTrainer, "teacher_model", Role.OBJECT),
        (Mine, "compute_metrics", Role.CALLED),
        (Mine, "compute_loss_func", Role.CALLED),
        (Mine, "make_judge", Role.FACTORY),
        (Mine, "scorer", Role.OBJECT),
        (Mine, "anything", Role.UNKNOWN),
    ],
)
def test_what_an_argument_becomes_is_read_off_the_trainer(trainer: type[Trainer], key: str, role: Role) -> None:
    assert role_of(parameters_of(trainer)[key].annotation) is role


def made(trainer: type[Trainer], key: str, value: Any) -> Any:
    return make_component(key, value, parameters_of(trainer)[key], tokenizer="the run's", learning_rate=0.5)  # type: ignore[arg-type]


def test_a_value_becomes_what_the_argument_wants(tiny_model: Path) -> None:
    assert made(trl.GRPOTrainer, "tools", f"{HERE}.add") == [add]
    assert made(trl.GRPOTrainer, "environment_factory", f"{HERE}.Room") is Room
    both = made(
        trl.GRPOTrainer, "environment_factory", {"a": f"{HERE}.Room", "b": {"_target_": f"{HERE}.Room", "start": 2}}
    )
    assert both["a"] is Room and both["b"]().start == 2
    assert made(Mine, "hooks", {"x": f"{HERE}.add"}) == {"x": add}
    assert made(Mine, "anything", {"_target_": f"{HERE}.add"}) is add and made(Mine, "anything", 3) == 3
    assert isinstance(made(Mine, "scorer", str(tiny_model)), PreTrainedTokenizerBase)
    node = {"_target_": "transformers.AutoTokenizer.from_pretrained", "pretrained_model_name_or_path": str(tiny_model)}
    assert [type(each) for each in made(trl.GRPOTrainer, "reward_processing_classes", [None, node])] == [
        type(None),
        type(AutoTokenizer.from_pretrained(tiny_model)),
    ]


@pytest.mark.parametrize(
    ("given", "arguments"),
    [
        ("torch.optim.SGD", {"lr": 0.5}),
        ({"_target_": "torch.optim.SGD", "momentum": 0.9}, {"momentum": 0.9, "lr": 0.5}),
        (["torch.optim.SGD", {"lr": 0.1}], {"lr": 0.1}),
        (["torch.optim.SGD"], {"lr": 0.5}),
    ],
)
def test_an_optimizer_is_a_class_with_its_arguments(given: Any, arguments: dict[str, Any]) -> None:
    """With the learning rate of the run, where none stands beside it: otherwise a sweep of it would sweep nothing."""
    assert made(trl.SFTTrainer, "optimizer_cls_and_kwargs", given) == (torch.optim.SGD, arguments)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (3, "Give the dotted path of a class"),
        (["torch.optim.SGD", 3], "Give the dotted path of a class"),
        ("torch.nn.Linear", "not a subclass of torch.optim.Optimizer"),
        ({"_target_": "torch.optim.SGD", "momentun": 1}, "takes no 'momentun'. Did you mean 'momentum'"),
    ],
)
def test_what_is_no_optimizer_is_named(given: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        made(trl.SFTTrainer, "optimizer_cls_and_kwargs", given)


def test_a_tool_whose_argument_is_given_is_shown_without_it() -> None:
    (tool,) = made(trl.GRPOTrainer, "tools", [{"_target_": f"{HERE}.add", "scale": 10}])
    shown = get_json_schema(tool)["function"]
    assert shown["name"] == "add" and sorted(shown["parameters"]["properties"]) == ["a", "b"]
    assert tool(1, 2) == 30 and list(inspect.signature(tool).parameters) == ["a", "b"]
