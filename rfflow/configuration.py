"""The only reader of Hydra's ``DictConfig``: checks it, and turns it into the dataclasses of :mod:`rfflow.spec`.

Swept, cloned and sampled configurations all pass here, so a mistake is reported the same way wherever it was made. The
standard library, Hydra and OmegaConf only: no torch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from rfflow.confidential import shown_config
from rfflow.dataset_section import read_dataset
from rfflow.errors import ConfigError, nearest
from rfflow.references import resolved
from rfflow.spec import (
    EXPERIMENT_KEYS,
    KEEP,
    CheckpointSpec,
    ControlSpec,
    DatasetSpec,
    ExperimentSpec,
    GenerateSpec,
    MemorySpec,
    ModelSpec,
    Node,
    Objective,
    RunSpec,
    TrainerSpec,
)
from rfflow.unread import unread_keys


def read_run(cfg: DictConfig) -> RunSpec:
    """Read and check one job's configuration."""
    config = _to_container(cfg)
    shown = shown_config(cfg, config)
    unread = unread_keys(cfg)
    _check_held_out(_section(config, "dataset"))
    _check_own_rows(_section(config, "dataset"))
    _check_lr(cfg, config.get("lr"))
    model = _read_model(_section(config, "model"))
    trainer = _read_trainer(_section(config, "trainer"), model)
    if trainer.target.endswith("RewardTrainer"):
        seed = trainer.args.get("seed")
        head = {"auto_class": "AutoModelForSequenceClassification", "num_labels": 1}
        head["head_seed"] = 42 if seed is None else seed  # TRL's own default
        model = replace(model, kwargs={**head, **model.kwargs})
    return RunSpec(
        model=model,
        dataset=read_dataset(_section(config, "dataset")),
        trainer=trainer,
        peft=_read_peft(config.get("peft")),
        chunks=_whole_number(config.get("chunks", 1), "chunks"),
        evaluate=_boolean(config.get("evaluate", True), "evaluate"),
        config=shown.config,
        hidden=shown.hidden,
        generate=_read_generate(config.get("evaluation")),
        unread=unread,
    )


def _check_lr(cfg: DictConfig, lr: Any) -> None:
    """Name ``lr``, which people have typed, and not the argument that takes it from there."""
    args = OmegaConf.select(cfg, "trainer.args", default=None)
    given: Any = OmegaConf.to_container(args, resolve=False) if isinstance(args, DictConfig) else {}
    is_number = isinstance(lr, int | float) and not isinstance(lr, bool)
    if given.get("learning_rate") == "${lr}" and not is_number:
        raise ConfigError(f"lr is {lr!r}. Allowed: a number, such as 2e-4.")


def _check_own_rows(dataset: Node) -> None:
    """Refuse rows of somebody's own where the data set that was chosen reads other columns, for rows of its own."""
    function = dataset.get("formatting_func")
    target = function.get("_target_") if isinstance(function, Mapping) else None
    if not HydraConfig.initialized() or not str(target).startswith("recipes."):
        return
    given = dict(str(override).lstrip("+").partition("=")[::2] for override in HydraConfig.get().overrides.task)
    chosen = HydraConfig.get().runtime.choices.get("dataset")
    if any(key.startswith("dataset.formatting_func") for key in given):
        return
    for key, group in (("path", "local"), ("name", "hub")):
        if f"dataset.{key}" in given:
            typed = f"dataset.{key}={given[f'dataset.{key}']}"
            raise ConfigError(
                f"{typed}: dataset={chosen} is for rows of its own, whose columns {target} knows. For yours: "
                f"dataset={group} {typed}"
            )


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
    section = _settings(section, "evaluation", ("generate",)).get("generate")
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


def built_run(build_trainer: Callable[[DictConfig], Any], cfg: DictConfig, name: str) -> RunSpec:
    """Return the run of an app whose function builds the trainer; our settings stand in its section ``rfflow``, if any.

    Args:
        build_trainer: takes the app's configuration and returns a ``transformers.Trainer`` that has not trained.
        cfg: the app's configuration.
        name: the experiment's name, if the section has none.
    """
    config = _to_container(cfg)
    shown = shown_config(cfg, config)
    allowed = (*EXPERIMENT_KEYS, "seed", "chunks", "evaluate")
    section = _settings(config.get("rfflow"), "rfflow", allowed)
    chunks, evaluate = section.pop("chunks", 4), section.pop("evaluate", True)
    for group, defaults in _TRACKING.items():
        section[group] = {**{key: {"_target_": target} for key, target in defaults.items()}, **section.get(group, {})}
    return RunSpec(
        model=ModelSpec("built by the app"),
        dataset=DatasetSpec(path="built by the app"),
        trainer=TrainerSpec("built by the app", "built by the app"),
        peft=None,
        chunks=_whole_number(chunks, "rfflow.chunks"),
        evaluate=_boolean(evaluate, "rfflow.evaluate"),
        config=shown.config,
        hidden=shown.hidden,
        build=functools.partial(build_trainer, cfg),
        experiment={"name": name, "seed": config.get("seed", 42), **section},
    )


# What conf/ chooses for our own configurations.
_TRACKING: Mapping[str, Mapping[str, str]] = {
    "callbacks": {
        "table": "rfflow.tracking.table.LiveTable",
        "runs_csv": "rfflow.tracking.runs_csv.RunsTable",
        "metrics_log": "rfflow.tracking.metrics_log.MetricsLog",
        "timeline": "rfflow.tracking.timeline.Timeline",
    },
    "loggers": {"tensorboard": "rfflow.tracking.tensorboard.TensorBoardLogger"},
}


def experiment_config(spec: RunSpec, cfg: DictConfig) -> DictConfig:
    """Return the configuration that the experiment of a run is read from."""
    return cfg if spec.experiment is None else OmegaConf.create(dict(spec.experiment))


def read_experiment(cfg: DictConfig) -> ExperimentSpec:
    """Read and check what the runs of an experiment share."""
    config = _to_container(cfg)
    engine = _settings(config.get("engine"), "engine", ("accelerator", "device", "capture_output", "memory", "on_nan"))
    memory = _settings(engine.pop("memory", None), "engine.memory", [f.name for f in fields(MemorySpec)])
    if engine.get("on_nan", "fail") not in ("fail", "stop", "ignore"):
        raise ConfigError(f"engine.on_nan is {engine['on_nan']!r}. Allowed: fail, stop, ignore.")
    _whole_number(engine.get("device", 0), "engine.device", least=0)
    _boolean(engine.get("capture_output", True), "engine.capture_output")
    control = _settings(config.get("control"), "control", [f.name for f in fields(ControlSpec)])
    return ExperimentSpec(
        name=_read_name(config.get("name", "experiment")),
        objective=read_objective(config.get("objective")),
        searched=read_objectives(config.get("search")),
        seed=_whole_number(config.get("seed") or 0, "seed", least=0),
        loggers={key: node for key, node in (config.get("loggers") or {}).items() if node},
        callbacks={key: node for key, node in (config.get("callbacks") or {}).items() if node},
        memory=MemorySpec(**memory),
        control=_check_control(ControlSpec(**control)),
        checkpoint=_read_checkpoint(config.get("checkpoint")),
        policy=_read_policy(config.get("policy")),
        **engine,
    )


def _settings(section: Any, name: str, allowed: Sequence[str]) -> dict[str, Any]:
    if section and not isinstance(section, Mapping):
        raise ConfigError(
            f"{name} is {section!r}, and holds settings of its own: {', '.join(f'{name}.{key}=' for key in allowed)}."
        )
    section = dict(section or {})
    for key in section:
        if key not in allowed:
            raise ConfigError(f"{name}.{key} is not a setting.{nearest(key, allowed)} Allowed: {', '.join(allowed)}.")
    return section


def _read_name(name: Any) -> str:
    if name is None or not str(name).strip():
        raise ConfigError(f"name is {name!r}. Give the experiment a name: it is its folder under outputs/.")
    return str(name)


def _check_control(control: ControlSpec) -> ControlSpec:
    timeout = control.idle_timeout
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or timeout < 0):
        raise ConfigError(f"control.idle_timeout is {timeout!r}. Allowed: seconds from 0 up, or null to wait for ever.")
    _boolean(control.enabled, "control.enabled")
    _boolean(control.polling, "control.polling")
    return control


def _read_policy(section: Any) -> Node | None:
    if not section:
        return None
    if not isinstance(section, Mapping) or not section.get("_target_"):
        raise ConfigError(
            f"policy is {section!r}, which has no _target_. Choose one with policy=halving, or none with policy=none."
        )
    return dict(section)


def _read_checkpoint(section: Any) -> CheckpointSpec:
    settings = _settings(section, "checkpoint", [f.name for f in fields(CheckpointSpec)])
    keep = settings.pop("keep", CheckpointSpec.keep)
    keep = (keep,) if isinstance(keep, str) else tuple(keep or ())
    for word in keep:
        if word not in KEEP:
            raise ConfigError(
                f"checkpoint.keep has {word!r}.{nearest(str(word), KEEP)} Allowed: any of {', '.join(KEEP)}."
            )
    if settings.get("every", 1) is not None:
        _whole_number(settings.get("every", 1), "checkpoint.every")
    grace = settings.get("grace", CheckpointSpec.grace)
    if isinstance(grace, bool) or not isinstance(grace, (int, float)) or grace < 0:
        raise ConfigError(f"checkpoint.grace is {grace!r}. Allowed: seconds from 0 up.")
    return CheckpointSpec(keep=keep, **settings)


def _to_container(cfg: DictConfig) -> dict[str, Any]:
    container = resolved(cfg)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def _section(config: Node, name: str) -> dict[str, Any]:
    section = config.get(name)
    if not isinstance(section, Mapping):
        raise ConfigError(
            f"The configuration has no section {name!r} (value seen: {section!r}). "
            f"Choose a recipe (+recipe=sft) or a config of the group ({name}=...)."
        )
    return dict(section)


def _read_model(section: dict[str, Any]) -> ModelSpec:
    name = section.pop("name", None)
    if not name or not isinstance(name, str):
        raise ConfigError(
            f"model.name is {name!r}. Give a Hugging Face hub name, a local folder, a .gguf file or pkg://package/file."
        )
    tokenizer = section.pop("tokenizer", None)
    return ModelSpec(name=name, tokenizer=tokenizer, kwargs=_without_none(section))


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
        kwargs=_without_none(section),
    )


def _read_checkpointing(args: dict[str, Any]) -> dict[str, Any]:
    """Read the name that activation checkpointing had before.

    Where the new one says something, too (in conf/, or as the default of TRL's class), transformers passes over it.
    """
    for old, new in _CHECKPOINTING.items():
        if (value := args.pop(old, None)) is None:
            continue
        if args.get(new) and args[new] != value:
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
        kwargs=_without_none({**model.kwargs, **section}),
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


def read_objective(section: Any, name: str = "objective") -> Objective:
    """Read and check a metric and its direction.

    Args:
        section: both, or neither for the defaults.
        name: where they stand, for messages.
    """
    if section and not isinstance(section, Mapping):
        raise ConfigError(f"{name} is {section!r}. Allowed: {{metric: eval_loss, direction: minimize}}.")
    objective = Objective(**_settings(section, name, ("metric", "direction")))
    if objective.direction not in ("minimize", "maximize"):
        raise ConfigError(f"{name}.direction is {objective.direction!r}. Allowed: minimize, maximize.")
    return objective


def read_objectives(section: Any) -> tuple[Objective, ...]:
    """Read and check what a search weighs against each other: the ``objectives`` of the section ``search``."""
    nodes = section.get("objectives") if isinstance(section, Mapping) else None
    if nodes and not isinstance(nodes, list | tuple):
        raise ConfigError(f"search.objectives is {nodes!r}. Allowed: a list of {{metric: ..., direction: ...}}.")
    return tuple(read_objective(node, f"search.objectives[{index}]") for index, node in enumerate(nodes or ()))


def _without_none(section: Node) -> dict[str, Any]:
    return {key: value for key, value in section.items() if value is not None}


def _whole_number(value: Any, name: str, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} is {value!r}. Allowed: a whole number from {least} up.")
    return value


def _boolean(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{name} is {value!r}. Allowed: true, false.")
    return value
