"""One job's configuration, read and checked into a :class:`~rfflow.config.spec.RunSpec`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from rfflow.confidential import shown_config
from rfflow.config.dataset import read_dataset
from rfflow.config.evaluation import is_evaluation, read_evaluation
from rfflow.config.experiment import check_lr
from rfflow.config.fields import boolean, plain, section_of, settings_of, whole_number, without_none
from rfflow.config.spec import (
    EvalSpec,
    GenerateSpec,
    ModelSpec,
    Node,
    RunSpec,
    TrainerSpec,
    TrainSpec,
)
from rfflow.config.unread import unread_keys
from rfflow.errors import ConfigError, nearest


def read_run(cfg: DictConfig) -> RunSpec:
    """Read and check one job's configuration."""
    config = plain(cfg)
    shown = shown_config(cfg, config)
    unread = unread_keys(cfg)
    _check_held_out(section_of(config, "dataset"))
    if is_evaluation(config):
        if (adapter := _read_adapter(section_of(config, "model"))) is not None:
            raise ConfigError(
                f"model.adapter is {adapter}, which is what training goes on with, and this run answers questions. To "
                f"let an adapter answer them: generator.adapter={adapter}"
            )
        return EvalSpec(
            model=_read_model(section_of(config, "model")),
            dataset=read_dataset(section_of(config, "dataset")),
            peft=_read_peft(config.get("peft")),
            chunks=whole_number(config.get("chunks", 1), "chunks"),
            config=shown.config,
            hidden=shown.hidden,
            evaluation=read_evaluation(config),
            unread=unread,
        )
    check_lr(cfg, config.get("lr"))
    section = section_of(config, "model")
    adapter = _read_adapter(section)
    model = _read_model(section)
    trainer = _read_trainer(section_of(config, "trainer"), model)
    model = _with_head(model, trainer.target, trainer.args)
    return TrainSpec(
        model=model,
        dataset=read_dataset(section_of(config, "dataset")),
        trainer=trainer,
        peft=_read_peft(config.get("peft")),
        chunks=whole_number(config.get("chunks", 1), "chunks"),
        evaluate=boolean(config.get("evaluate", True), "evaluate"),
        config=shown.config,
        hidden=shown.hidden,
        generate=_read_generate(config.get("evaluation")),
        unread=unread,
        adapter=adapter,
    )


def model_of(config: Node) -> ModelSpec:
    """Return the model that a resolved configuration trains, read again after the run has ended.

    Raises:
        ConfigError: if it names none.
    """
    trainer = section_of(config, "trainer")
    return _with_head(_read_model(section_of(config, "model")), str(trainer.get("_target_")), trainer.get("args") or {})


def _with_head(model: ModelSpec, trainer: str, args: Node) -> ModelSpec:
    """Return the model that a trainer wants: a reward trainer's has a head of one label."""
    if not trainer.endswith("RewardTrainer"):
        return model
    seed = args.get("seed")
    head = {"auto_class": "AutoModelForSequenceClassification", "num_labels": 1}
    head["head_seed"] = 42 if seed is None else seed  # TRL's own default
    return replace(model, kwargs={**head, **model.kwargs})


def _check_held_out(dataset: Node) -> None:
    """Refuse rows to hold out beside rows to evaluate on, where both were asked for by an override.

    Configurations have a size of their own, for those who give nothing.
    """
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else ()
    given = {str(override).lstrip("+").partition("=")[0] for override in overrides}
    for key in ("eval_path", "eval_split"):
        if dataset.get(key) and dataset.get("eval_size") and "dataset.eval_size" in given:
            raise ConfigError(
                f"dataset.eval_size is {dataset['eval_size']}, and nothing would read it: the rows to evaluate on are "
                f"those of dataset.{key}={dataset[key]}. Say one of both."
            )


def _read_generate(section: Any) -> GenerateSpec | None:
    section = settings_of(section, "evaluation", ("generate",)).get("generate")
    if not section:
        return None
    own = {f.name for f in fields(GenerateSpec)} - {"kwargs"}
    values = {key: value for key, value in section.items() if key in own and value is not None}
    for key, least in (("samples", 0), ("shown", 0), ("batch_size", 1), ("max_new_tokens", 1)):
        value = values.setdefault(key, 0) if key == "samples" else values.get(key, least)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(
                f"evaluation.generate.{key} is {value!r}. Allowed: a whole number from {least} up"
                f"{' (0: generate nothing)' if key == 'samples' else ''}."
            )
    if not values["samples"]:
        for key in [key for key in section if key not in own]:
            raise ConfigError(
                f"evaluation.generate.{key} is {section[key]!r}, and evaluation.generate.samples is 0: nothing is "
                f"generated.{nearest(key, own)}"
            )
        return None
    scores = values.pop("scores", [])
    kwargs = {key: value for key, value in section.items() if key not in own}
    return GenerateSpec(**values, scores=tuple([scores] if isinstance(scores, str | dict) else scores), kwargs=kwargs)


def _read_adapter(section: dict[str, Any]) -> str | None:
    adapter = section.pop("adapter", None)
    if adapter is not None and not isinstance(adapter, str):
        raise ConfigError(
            f"model.adapter is {adapter!r}. Give a run's directory, a folder with an adapter, or a name on the hub."
        )
    return adapter or None


def _read_model(section: dict[str, Any]) -> ModelSpec:
    section.pop("adapter", None)  # of the run that trains, and not of the model
    name = section.pop("name", None)
    if not name or not isinstance(name, str):
        raise ConfigError(
            f"model.name is {name!r}. Give a Hugging Face hub name, a local folder, a .gguf file or pkg://package/file."
        )
    tokenizer = section.pop("tokenizer", None)
    return ModelSpec(name=name, tokenizer=tokenizer, kwargs=without_none(section))


def _read_trainer(section: dict[str, Any], model: ModelSpec) -> TrainerSpec:
    target = section.pop("_target_", None)
    args = section.pop("args", None)
    if not target or not isinstance(args, Mapping) or "_target_" not in args:
        raise ConfigError(
            f"trainer needs a _target_ (seen: {target!r}) and args with a _target_ of their own (seen: {args!r}). "
            "Choose one with trainer=sft."
        )
    return TrainerSpec(
        target=target,
        args_target=args["_target_"],
        args=_read_checkpointing({key: value for key, value in args.items() if key != "_target_"}),
        callbacks=_read_trainer_callbacks(section.pop("callbacks", None)),
        ref_model=_read_reference(section.pop("ref_model", None), model),
        kwargs=without_none(section),
    )


def _read_checkpointing(args: dict[str, Any]) -> dict[str, Any]:
    """Read the name that activation checkpointing had before.

    Where the new one says something, too (in conf/, or as the default of TRL's class), transformers passes over it.
    """
    for old, new in _CHECKPOINTING.items():
        if (value := args.pop(old, None)) is None:
            continue
        if args.get(new) not in (None, False, {}, "auto") and args[new] != value:
            raise ConfigError(
                f"trainer.args.{old} is {value!r} and {new} is {args[new]!r}: two names of the same. Say one."
            )
        args[new] = value
    return args


_CHECKPOINTING = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}


def _read_trainer_callbacks(given: Any) -> tuple[Node, ...]:
    """Read ``trainer.callbacks``: a list or named, each a node or, as a function may be given, its dotted path."""
    if isinstance(given, str) or (isinstance(given, Mapping) and "_target_" in given):
        given = [given]
    nodes = [node for node in (given.values() if isinstance(given, Mapping) else given or []) if node]
    nodes = [{"_target_": node} if isinstance(node, str) else node for node in nodes]
    for node in nodes:
        if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
            raise ConfigError(
                f"trainer.callbacks has {node!r}. Allowed: classes by _target_, as in "
                "'trainer.callbacks=[{_target_: my_code.MyCallback}]'."
            )
    return tuple(nodes)


def _read_reference(section: Any, model: ModelSpec) -> ModelSpec | None:
    """Read ``trainer.ref_model``: a name, or a section like ``model``, whose keys it takes over where it has none."""
    if not section:
        return None
    section = {"name": section} if isinstance(section, str) else dict(section)
    if not isinstance(section.get("name"), str):
        raise ConfigError(
            f"trainer.ref_model.name is {section.get('name')!r}. Give what model.name takes, or trainer.ref_model=null "
            "to compare with the model itself."
        )
    return ModelSpec(
        name=section.pop("name"),
        tokenizer=section.pop("tokenizer", None),
        kwargs=without_none({**model.kwargs, **section}),
        where="trainer.ref_model",
    )


def _read_peft(section: Any) -> Node | None:
    if not section:
        return None
    settings = {key: value for key, value in section.items() if key != "_target_"}
    if section.get("_target_"):
        return dict(section)
    if settings:
        raise ConfigError(
            f"peft=none fine-tunes every weight, but peft.{next(iter(settings))} is set. Choose peft=lora to use it."
        )
    return None
