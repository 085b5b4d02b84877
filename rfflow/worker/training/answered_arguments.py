"""Arguments of trainers that nobody would read, or that a run among others cannot have: answered before training.

Every argument of transformers and TRL is one or the other: honoured, as by the same script alone, or answered here in a
sentence. docs/arguments.md lists them all, and a test compares it with the installed libraries. The tables are in
:mod:`rfflow.worker.training.unread_arguments`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any

import torch
from transformers import EarlyStoppingCallback, GenerationConfig, TrainerCallback, TrainingArguments

from rfflow.config.spec import TrainSpec
from rfflow.errors import ConfigError, nearest
from rfflow.worker.models.arguments import KEYWORDS
from rfflow.worker.rewards.functions import names_reward_model
from rfflow.worker.training.unread_arguments import (
    BREAKING,
    INSTEAD,
    NEVER,
    ONLY_WITH,
    OPTIM_ARGS,
    WHERE,
    WITH_OPTIM_ARGS,
    WITH_OPTIM_TARGETS,
)


class Arguments:
    """What a run gives of its trainer's arguments, and what the class says of the others."""

    def __init__(self, cls: type, given: Mapping[str, Any]):
        self.cls = cls
        self.given = {key: value for key, value in given.items() if value is not None}
        self._defaults = {field.name: _default(field) for field in fields(cls) if field.init}

    def __getitem__(self, key: str) -> Any:
        return self.given.get(key, self._defaults.get(key))

    def __contains__(self, key: str) -> bool:
        """Whether it is given, and says anything else than leaving it out would."""
        return key in self.given and key in self._defaults and self.given[key] != self._defaults[key]


def _default(field: Field[Any]) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return None if field.default is MISSING else field.default


@dataclass(frozen=True)
class Place:
    """Where a run is to train, and with what."""

    spec: TrainSpec
    device: torch.device
    model_fields: Collection[str]
    """The names in the model's config; ``from_pretrained`` takes them, too."""
    evaluates: bool
    """Whether there are rows to evaluate on."""


def check_read(cls: type, place: Place) -> None:
    """Answer what would be passed over, or would break what runs share.

    Args:
        cls: the class of the trainer's arguments.
        place: whose they are.

    Raises:
        ConfigError: naming the argument, its value, why nobody would read it, and what to say instead.
    """
    arguments = Arguments(cls, place.spec.trainer.args)
    for key, why in NEVER.items():
        if key in arguments:
            raise ConfigError(f"{WHERE}.{key} is {arguments[key]!r}, which no run of rfflow can have. {why}")
    for check in _CHECKS:
        if said := check(arguments, place):
            raise ConfigError(said)
    for key, (others, allowed) in ONLY_WITH.items():
        other = others.split()[0]
        if key in arguments and not any(_is_one_of(arguments[name], allowed) for name in others.split()):
            values = " or ".join(str(value).lower() if isinstance(value, bool) else str(value) for value in allowed)
            raise ConfigError(
                f"{WHERE}.{key} is {arguments[key]!r}, and nothing would read it: {cls.__name__} does so only with "
                f"{WHERE}.{other}={values}, which is {arguments[other]!r}. {INSTEAD.get(other, '')}".rstrip()
            )


def _is_one_of(value: Any, allowed: Iterable[Any]) -> bool:
    if allowed == ("more than 0",):
        return bool(value)
    if isinstance(value, list | tuple):
        return any(str(getattr(item, "value", item)) in allowed for item in value)
    return getattr(value, "value", value) in allowed or value == "all"


def _steps(arguments: Arguments, place: Place) -> str | None:
    steps = arguments["max_steps"]
    if "max_steps" not in arguments or steps > 0:
        return None
    return f"{WHERE}.max_steps is {steps}. Allowed: a whole number from 1 up, or -1 for {WHERE}.num_train_epochs."


def _does(arguments: Arguments, place: Place) -> str | None:
    if arguments.given.get("do_train") is False:
        return f"{WHERE}.do_train is False, and rfflow trains. Leave it out; rfflow --cfg job shows a run without it."
    if arguments.given.get("do_eval") is False and place.spec.evaluate and place.evaluates:
        return f"{WHERE}.do_eval is False, which nothing reads. To evaluate nothing, say evaluate=false."
    if arguments["do_eval"] and not place.evaluates:
        return f"{WHERE}.do_eval is True, and there is nothing to evaluate on. {_ROWS_TO_EVALUATE}"
    return None


_ROWS_TO_EVALUATE = "Give dataset.eval_path, dataset.eval_split or dataset.eval_size."


def _evaluates(arguments: Arguments, place: Place) -> str | None:
    strategy = getattr(arguments["eval_strategy"], "value", arguments["eval_strategy"])
    if strategy not in (None, "no") and not place.evaluates:
        return (
            f"{WHERE}.eval_strategy is {strategy!r}, and there is nothing to evaluate on. {_ROWS_TO_EVALUATE} To "
            f'evaluate nothing: {WHERE}.eval_strategy="no".'
        )
    for key in ("batch_eval_metrics", "include_for_metrics"):
        if key in arguments and "compute_metrics" not in place.spec.trainer.kwargs:
            return f"{WHERE}.{key} is {arguments[key]!r}, and nothing would read it without trainer.compute_metrics."
    return None


def _loads(arguments: Arguments, place: Place) -> str | None:
    rewards = place.spec.trainer.kwargs.get("reward_funcs") or []
    if any(names_reward_model(node) for node in (rewards if isinstance(rewards, list) else [rewards])):
        return None  # those are loaded with them
    given = arguments["model_init_kwargs"]
    if "model_init_kwargs" in arguments:
        if not isinstance(given, Mapping):
            return f"{WHERE}.model_init_kwargs is {given!r}, which nothing would read: the model is the section model."
        known = {*KEYWORDS, "torch_dtype", *place.model_fields}
        said = ", ".join(f"model.{key}={value}" for key, value in given.items() if key in known)
        said = f" Say {said}.".replace("torch_dtype", "dtype") if said else ""
        doubt = "".join(
            f" {key!r} is no argument of from_pretrained and no field of the model's config.{nearest(key, known)}"
            for key in given
            if key not in known
        )
        return (
            f"{WHERE}.model_init_kwargs is {dict(given)!r}, and nothing would read it: rfflow loads the model once for "
            f"all runs that share it, by the section model.{said}{doubt}"
        )
    if "trust_remote_code" in arguments and not arguments["use_vllm"]:
        return (
            f"{WHERE}.trust_remote_code is {arguments['trust_remote_code']!r}, and nothing would read it: the section "
            "model loads model and tokenizer. Say model.trust_remote_code=true."
        )
    return None


def _generates(arguments: Arguments, place: Place) -> str | None:
    tools = ("tools", "environment_factory")
    if "max_tool_calling_iterations" in arguments and not any(place.spec.trainer.kwargs.get(key) for key in tools):
        return (
            f"{WHERE}.max_tool_calling_iterations is {arguments['max_tool_calling_iterations']}, and there is nothing "
            "to call: no trainer.tools, no trainer.environment_factory."
        )
    for key in arguments.given:
        if key.startswith("vllm_") and key in arguments and not arguments["use_vllm"]:
            return (
                f"{WHERE}.{key} is {arguments[key]!r}, and nothing would read it: {arguments.cls.__name__} does so "
                f"only with {WHERE}.use_vllm=true."
            )
    return None


def _optimizes(arguments: Arguments, place: Place) -> str | None:
    optim = str(getattr(arguments["optim"], "value", arguments["optim"]))
    for key, readers in (("optim_args", WITH_OPTIM_ARGS), ("optim_target_modules", WITH_OPTIM_TARGETS)):
        if key in arguments and not optim.startswith(readers):
            names = ", ".join(sorted(readers))
            return (
                f"{WHERE}.{key} is {arguments[key]!r}, and nothing would read it with {WHERE}.optim={optim}: it is for "
                f"those that begin with {names}."
            )
    known = OPTIM_ARGS.get(optim, ())
    given_args = str(arguments["optim_args"] or "").replace(" ", "")
    for given in given_args.split(",") if known and given_args else ():
        if (name := given.partition("=")[0]) not in known:
            return (
                f"{WHERE}.optim_args has {given!r}, and nothing would read it with {WHERE}.optim={optim}."
                f"{nearest(name, known)} It reads: {', '.join(known)}."
            )
    return None


def _has_unread_keys(arguments: Arguments, place: Place) -> str | None:
    """Dictionaries whose readers look for some keys and pass over the others."""
    generation = [] if arguments["use_vllm"] else [name for name in vars(GenerationConfig()) if name[0] != "_"]
    for key, known in (("dataset_kwargs", ["skip_prepare_dataset"]), ("generation_kwargs", generation)):
        given = arguments.given.get(key)
        given = given if isinstance(given, Mapping) else {}
        for name in given:
            if known and name not in known:
                return f"{WHERE}.{key}.{name} is {given[name]!r}, and nothing would read it.{nearest(name, known)}" + (
                    f" Allowed: {', '.join(known)}." if len(known) < 4 else ""
                )
    return None


def _stands_on_a_device(arguments: Arguments, place: Place) -> str | None:
    if arguments["use_cpu"] and place.device.type != "cpu":
        return f"{WHERE}.use_cpu is True, and runs train on {place.device}. Say engine.accelerator=cpu."
    if arguments.given.get("use_cpu") is False and place.device.type == "cpu" and torch.cuda.is_available():
        return f"{WHERE}.use_cpu is False, and engine.accelerator lets the runs train on the CPU. Say one of both."
    debug = arguments["debug"] or ""
    if "tpu_metrics_debug" in (debug if isinstance(debug, list) else str(debug).split()):
        return f"{WHERE}.debug has tpu_metrics_debug, and rfflow trains on no TPU."
    config = arguments["accelerator_config"]
    if isinstance(config, Mapping) and config.get("use_configured_state"):
        return (
            f"{WHERE}.accelerator_config.use_configured_state is True, and there is no state that somebody has "
            "configured: each run of rfflow has its own. Leave it out."
        )
    return None


def _publishes(arguments: Arguments, place: Place) -> str | None:
    if arguments["push_to_hub"] and not arguments["hub_model_id"]:
        return (
            f"{WHERE}.push_to_hub is True without {WHERE}.hub_model_id, and transformers would name the repository "
            "after the folder, which is called the same for every run. Give each run its own."
        )
    return None


_CHECKS: tuple[Callable[[Arguments, Place], str | None], ...] = (
    _steps,
    _does,
    _evaluates,
    _loads,
    _generates,
    _optimizes,
    _has_unread_keys,
    _stands_on_a_device,
    _publishes,
)


def check_callbacks(callbacks: Iterable[TrainerCallback], cls: type, given: Mapping[str, Any]) -> None:
    """Answer a callback that would only count what never happens.

    Raises:
        ConfigError: for early stopping without evaluations of the trainer's own.
    """
    arguments = Arguments(cls, given)
    strategy = getattr(arguments["eval_strategy"], "value", arguments["eval_strategy"])
    for callback in callbacks:
        if isinstance(callback, EarlyStoppingCallback) and (
            strategy in (None, "no") or not (arguments["metric_for_best_model"] or arguments["load_best_model_at_end"])
        ):
            raise ConfigError(
                "trainer.callbacks: EarlyStoppingCallback counts the trainer's own evaluations. Give it some, as in "
                f"{WHERE}.eval_strategy=steps {WHERE}.eval_steps=20 {WHERE}.metric_for_best_model=eval_loss; or let "
                "policy=... stop runs by what rfflow evaluates."
            )


def check_built(args: TrainingArguments) -> None:
    """Answer, of a trainer that a user's own function has built, what would break what runs share.

    Raises:
        ConfigError: naming the argument.
    """
    defaults = Arguments(TrainingArguments, {})
    for key in BREAKING:
        if getattr(args, key) != defaults[key]:
            raise ConfigError(f"{key} is {getattr(args, key)!r}, which no run of rfflow can have. {NEVER[key]}")
