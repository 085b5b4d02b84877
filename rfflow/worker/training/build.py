"""From a TrainSpec to the trainer that a plain TRL script would have built; every mistake is named before training."""

from __future__ import annotations

import contextlib
import inspect
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, TaskType, get_peft_model
from transformers import Trainer, TrainingArguments, set_seed

from rfflow.config.spec import AUTO, Node, TrainerSpec, TrainSpec
from rfflow.config.targets import import_object
from rfflow.config.unread import check_misplaced
from rfflow.errors import ConfigError, nearest
from rfflow.worker.data.checks import check_generation, check_rows, check_tokenized
from rfflow.worker.data.preparing import prepared_once
from rfflow.worker.data.rows import Data
from rfflow.worker.models.bases import Base
from rfflow.worker.models.heads import seeded_as_if_loaded
from rfflow.worker.rewards.functions import load_rewards, try_rewards
from rfflow.worker.training.adapters import check_met, check_settings
from rfflow.worker.training.answered_arguments import Place, check_built, check_callbacks, check_read
from rfflow.worker.training.arguments import check_values, listed
from rfflow.worker.training.components import OURS, check_tools, make_callback, make_component, parameters_of
from rfflow.worker.training.first_weights import with_adapter
from rfflow.worker.training.reference import shared_log_probs
from rfflow.worker.training.walks import remember_walks

log = logging.getLogger(__name__)


def build_trainer(
    spec: TrainSpec, base: Base, data: Data, output_dir: Path, device: torch.device, reference: Base | None = None
) -> Trainer:
    """Build the trainer of one run.

    Args:
        spec: the run.
        base: its base model; adapters share its weights, a full fine-tune copies them.
        data: its rows, not yet tokenized.
        output_dir: where the trainer keeps its own checkpoints, unless ``trainer.args.output_dir`` says otherwise.
        device: where to train.
        reference: the base model of ``spec.trainer.ref_model``.

    Raises:
        ConfigError: for anything that TRL, transformers or PEFT refuse.
    """
    trainer_class = _class(spec.trainer.target, Trainer, "trainer._target_")
    place = Place(spec, device, base.model.config.to_dict(), evaluates=data.eval is not None)
    args = _build_args(place, output_dir)
    peft_config = build_peft_config(spec.peft) if spec.peft else None
    check_misplaced(spec.unread, {"trainer.args": args} | ({"peft": peft_config} if peft_config else {}))
    if peft_config is not None and "ForSequenceClassification" in type(base.model).__name__:
        peft_config.task_type = TaskType.SEQ_CLS  # so that the new head is trained too, beside the adapter
    shares = peft_config is not None and not rewrites_base(peft_config)
    model = base.structure() if shares else base.copy()
    if peft_config is not None:
        _check_targets(peft_config, model)
    if spec.adapter is not None:
        if peft_config is None or not shares:
            raise ConfigError(
                f"model.adapter is {spec.adapter}, and this run trains "
                f"{'no adapter' if peft_config is None else 'one that rewrites its base'}. It goes on with an adapter "
                "of its own kind: peft=lora."
            )
        with refusals(f"model.adapter is {spec.adapter}, which cannot be loaded"):
            model = with_adapter(model, spec.adapter, peft_config, spec.model.name)
    tokenizer = base.tokenizer()
    if hasattr(args, "num_generations"):  # as TRL loads it where it is to generate
        tokenizer.padding_side = tokenizer.truncation_side = "left"
    check_rows(args, data, tokenizer)
    parameters = parameters_of(trainer_class)
    kwargs: dict[str, Any] = {
        "model": model,
        "args": args,
        "train_dataset": data.train,
        "eval_dataset": data.eval,
        "processing_class": tokenizer,
        "callbacks": [make_callback(node) for node in spec.trainer.callbacks],
    }
    _check_keys(spec.trainer, args, parameters, evaluates=data.eval is not None)
    if "eval_dataset" not in parameters:
        del kwargs["eval_dataset"]
    check_callbacks(kwargs["callbacks"], type(args), spec.trainer.args)
    given: dict[str, Any] = {}
    for key, node in spec.trainer.kwargs.items():
        if key == "reward_funcs":
            given[key] = _rewards(node, spec.trainer, args, data, device)
        else:
            given[key] = make_component(key, node, parameters[key], tokenizer, args.learning_rate)
    if hasattr(args, "num_generations"):
        check_generation(args, data, given)
    if reference is not None or (peft_config is None and _wants_reference(args, parameters)):
        given["ref_model"] = (reference or base).structure()
    # With an adapter that rewrites its base, what is left when it is off is not the base.
    # One that goes on is compared with as it was.
    is_the_base = peft_config is None or (shares and spec.adapter is None)
    compared = reference or (base if is_the_base else None)
    with (
        refusals(f"{spec.trainer.target} refuses the configuration"),
        shared_log_probs(trainer_class, args, compared),
        prepared_once(trainer_class),
        seeded_as_if_loaded(trainer_class, base.model),
    ):
        if spec.adapter is not None:
            pass  # it is wrapped
        elif peft_config is not None and "peft_config" in parameters:
            kwargs["peft_config"] = peft_config
        elif peft_config is not None:
            # A trainer that knows nothing of PEFT gets the wrapped model, seeded as TRL would have seeded it.
            set_seed(args.seed)
            kwargs["model"] = get_peft_model(model, peft_config)
        trainer = trainer_class(**kwargs, **given)
    check_tokenized(trainer, data)
    check_tools(trainer)
    check_met(trainer.model)
    if peft_config is not None:
        copied = base.unshare(trainer.model)
        if copied:
            log.info("%d base parameters are trained by this run and are its own copies", copied)
    remember_walks(trainer.model)
    return trainer


def call_builder(build: Callable[[], Any]) -> Trainer:
    """Return what a function of the user's builds.

    Raises:
        ConfigError: if it raises, or returns something else than a trainer.
    """
    name = getattr(getattr(build, "func", build), "__name__", repr(build))
    with refusals(f"{name} fails"):
        trainer = build()
    if not isinstance(trainer, Trainer):
        raise ConfigError(f"{name} returned {type(trainer).__name__}. Allowed: a transformers.Trainer.")
    check_built(trainer.args)
    remember_walks(trainer.model)
    return trainer


def _check_keys(
    spec: TrainerSpec, args: TrainingArguments, parameters: Mapping[str, inspect.Parameter], *, evaluates: bool
) -> None:
    """Every key of the section is an argument of the trainer, and none that rfflow gives itself."""
    if "model" in parameters and parameters["model"].annotation in (str, "str"):
        raise ConfigError(
            f"{spec.target} takes a model by its name alone and loads it itself, and rfflow's runs share one that is "
            "loaded. It cannot be trained here."
        )
    if evaluates and "eval_dataset" not in parameters:
        raise ConfigError(f"{spec.target} takes nothing to evaluate on. Say dataset.eval_size=0 and no eval_path.")
    for key in [*spec.kwargs, *(["ref_model"] if spec.ref_model is not None else [])]:
        if key in OURS:
            raise ConfigError(f"trainer.{key} is not read: rfflow gives the trainer its own. {OURS[key]}")
        if key not in parameters:
            hint = (
                f" {type(args).__name__} does: trainer.args.{key}." if hasattr(args, key) else nearest(key, parameters)
            )
            raise ConfigError(f"trainer.{key}: {spec.target} takes no {key!r}.{hint}")


def _rewards(node: Any, spec: TrainerSpec, args: TrainingArguments, data: Data, device: torch.device) -> list[Any]:
    loading = {"trust_remote_code": getattr(args, "trust_remote_code", False)}
    rewards = load_rewards(node, loading | (getattr(args, "model_init_kwargs", None) or {}))
    if not any(spec.kwargs.get(key) for key in ("environment_factory", "rollout_func")):
        try_rewards(rewards, data.train, device)  # otherwise they may need what an environment or a rollout has left
    return rewards


def _wants_reference(args: TrainingArguments, parameters: Mapping[str, Any]) -> bool:
    """Whether a trainer of every weight would load the model once more, to compare with and to leave as it is."""
    moves = getattr(args, "sync_ref_model", False)
    return "ref_model" in parameters and not moves and not getattr(args, "precompute_ref_log_probs", False)


def _build_args(place: Place, output_dir: Path) -> TrainingArguments:
    spec, device = place.spec.trainer, place.device
    args_class = _class(spec.args_target, TrainingArguments, "trainer.args._target_")
    values = listed(args_class, dict(spec.args))
    check_values(args_class, values, "trainer.args")
    if values.get("activation_checkpointing") == AUTO:  # decided once the trainer is there, see :mod:`.activations`
        values["activation_checkpointing"] = False
    check_read(args_class, place)
    # All that lies in the folder goes to the hub: none of what rfflow keeps among the checkpoints must lie there.
    values.setdefault("output_dir", str(output_dir.with_name("hub") if values.get("push_to_hub") else output_dir))
    if device.type == "cpu":
        values.setdefault("use_cpu", True)
    for key in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
        if values.get(key, 1) < 1:
            raise ConfigError(f"trainer.args.{key} is {values[key]}. Allowed: a whole number from 1 up.")
    with refusals(f"{spec.args_target} refuses a value"):
        args = args_class(**values)
        args._setup_devices  # noqa: B018 - accelerate's state is made here, inside the run's context
    # One process trains on one device: never let transformers spread a model with DataParallel.
    args._n_gpu = min(args._n_gpu, 1)
    return args


def build_peft_config(node: Node) -> PeftConfig:
    config_class = _class(node["_target_"], PeftConfig, "peft._target_")
    values = {key: value for key, value in node.items() if key != "_target_"}
    check_values(config_class, values, "peft")
    with refusals(f"{node['_target_']} refuses a value"):
        config = config_class(**values)
    check_settings(values, config)
    return config


def rewrites_base(config: PeftConfig) -> bool:
    """Whether the method begins by taking something out of the base's own weights, as PiSSA does."""
    start = getattr(config, "init_lora_weights", None)
    return isinstance(start, str) and start not in ("gaussian", "orthogonal", "eva")


def _check_targets(config: PeftConfig, model: torch.nn.Module) -> None:
    """Every listed module must match: PEFT passes over a misspelt one as long as another matches."""
    for key in ("target_modules", "modules_to_save"):
        targets = getattr(config, key, None)
        if not targets or str(targets).lower() == "all-linear":
            continue
        names = [name for name, _ in model.named_modules() if name]
        if isinstance(targets, str):
            _check_expression(targets, f"peft.{key}", model)
            continue
        for target in targets:
            if not any(name == target or name.endswith(f".{target}") for name in names):
                leaves = _linear_layers(model)
                raise ConfigError(
                    f"peft.{key}: nothing in the model is called {target!r}.{nearest(target, leaves)} "
                    f"Linear layers there: {', '.join(leaves)}."
                )


def _check_expression(expression: str, where: str, model: torch.nn.Module) -> None:
    """A text is a regular expression that has to match the whole name of a module; a bare name matches none."""
    try:
        if any(re.fullmatch(expression, name) for name, _ in model.named_modules()):
            return
    except re.error as error:
        raise ConfigError(f"{where} is {expression!r}, which is no regular expression: {error}.") from error
    leaves = _linear_layers(model)
    hint = f" Did you mean [{expression}], as a list?" if expression in leaves else nearest(expression, leaves)
    raise ConfigError(
        f"{where} is {expression!r}, a regular expression that matches no module's whole name.{hint} "
        f"Linear layers there: {', '.join(leaves)}."
    )


def _linear_layers(model: torch.nn.Module) -> list[str]:
    return sorted({name.rsplit(".", 1)[-1] for name, module in model.named_modules() if _is_linear(module)})


def _is_linear(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear) or type(module).__name__ in ("Conv1D", "Linear4bit", "Linear8bitLt")


def _class(path: str, kind: type, where: str) -> type[Any]:
    found = import_object(path, where)
    if not inspect.isclass(found) or not issubclass(found, kind):
        raise ConfigError(f"{where} is {path!r}, which is not a subclass of {kind.__module__}.{kind.__name__}.")
    return found


@contextlib.contextmanager
def refusals(what: str, *kinds: type[Exception]) -> Iterator[None]:
    """Turn what a library raises while a run is built into one sentence; the trace goes to the run's log.

    Args:
        what: how the sentence begins.
        kinds: which exceptions, a missing library always among them; without any, all.
    """
    kinds = (*kinds, ImportError) if kinds else (Exception,)
    try:
        yield
    except ConfigError:
        raise
    except kinds as error:
        log.error("%s", what, exc_info=error)
        raise ConfigError(f"{what}: {' '.join(str(error).split()) or type(error).__name__}") from error
