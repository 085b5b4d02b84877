"""The only reader of Hydra's ``DictConfig``: checks it, and turns it into frozen dataclasses.

Everything behind this module works on the dataclasses below. Swept, cloned and sampled configurations all pass here, so
a mistake is reported the same way wherever it was made. The standard library and OmegaConf only: no torch.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rfflow.errors import ConfigError, nearest

Node = Mapping[str, Any]  # a plain mapping with a `_target_`, instantiated by Hydra where it is needed


@dataclass(frozen=True)
class ModelSpec:
    """Which base model a run starts from."""

    name: str
    """A Hugging Face hub name, a local folder, a .gguf file, or ``pkg://package/file`` inside an installed package."""
    tokenizer: str | None = None
    """Where the tokenizer lives when it is not beside the model: same forms as ``name``."""
    kwargs: Node = field(default_factory=dict)
    """Arguments of ``from_pretrained``, under their own names (``dtype``, ``revision``, ...).

    ``auto_class`` and ``head_seed`` are ours: the class of transformers whose ``from_pretrained`` it is
    (``AutoModelForCausalLM``), and the seed of a head that the saved model does not have.
    """
    where: str = field(default="model", compare=False)
    """Where it stands in the configuration, for messages."""

    @property
    def key(self) -> str:
        """Equal for two runs exactly when they can share one base model."""
        return json.dumps([self.name, self.tokenizer, self.kwargs], sort_keys=True, default=str)


@dataclass(frozen=True)
class DatasetSpec:
    """Where the rows come from and how they become the columns that the trainer reads."""

    path: str | None = None
    """A JSONL, JSON, CSV, Parquet or .txt file, a folder of them or saved by ``datasets``, or ``pkg://package/file``."""
    name: str | None = None
    """A data set on the Hugging Face hub."""
    config: str | None = None
    """The hub data set's configuration name."""
    split: str = "train"
    """The hub data set's (or the saved folder's) split to train on."""
    eval_path: str | None = None
    """A second file to evaluate on."""
    eval_split: str | None = None
    """A second split to evaluate on."""
    eval_size: float | int = 0
    """Without an evaluation file or split: rows (int) or share (float) held out of the training rows."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Columns to keep, as ``{column in the data: column the trainer reads}``; empty keeps all as they are."""
    sample_by: Literal["line", "paragraph", "document"] = "paragraph"
    """What of a .txt file becomes a row, as ``datasets`` has it; paragraphs are parted by an empty line."""
    formatting_func: Node | None = None
    """A function by ``_target_``: takes a row, returns a string (the text) or a dict (the columns)."""
    max_samples: int | None = None
    """Train on the first so many rows."""
    max_eval_samples: int | None = None
    """Evaluate on the first so many rows."""

    @property
    def key(self) -> str:
        """Equal for two runs exactly when they train on the same rows."""
        return json.dumps([getattr(self, f.name) for f in fields(self)], sort_keys=True, default=str)


@dataclass(frozen=True)
class TrainerSpec:
    """A ``transformers.Trainer`` subclass and what it is made with."""

    target: str
    """Dotted path of the trainer class, such as ``trl.SFTTrainer``."""
    args_target: str
    """Dotted path of its arguments class, such as ``trl.SFTConfig``."""
    args: Node = field(default_factory=dict)
    """Arguments of the arguments class, under their own names."""
    callbacks: tuple[Node, ...] = ()
    """``transformers.TrainerCallback`` nodes."""
    kwargs: Node = field(default_factory=dict)
    """Whatever else the trainer's constructor takes (``data_collator``, ``reward_funcs``, ...), as nodes."""
    ref_model: ModelSpec | None = None
    """The model that a preference trainer compares with; ``None`` is the model itself without its adapter."""


@dataclass(frozen=True)
class GenerateSpec:
    """Evaluation by generation, at every chunk boundary."""

    samples: int
    """How many rows of the evaluation set to answer, from its first."""
    batch_size: int = 8
    """How many of them at a time."""
    max_new_tokens: int = 64
    scores: tuple[Node | str, ...] = ()
    """Functions by ``_target_``, or as a dotted path; :mod:`rfflow.scores` says what they are given."""
    shown: int = 4
    """How many answers go to TensorBoard."""
    kwargs: Node = field(default_factory=dict)
    """Arguments of ``transformers.GenerationConfig`` (``temperature``, ...)."""


@dataclass(frozen=True)
class RunSpec:
    """One configuration to train: read from a configuration of ours, or built by a function of an app's own."""

    model: ModelSpec
    dataset: DatasetSpec
    trainer: TrainerSpec
    peft: Node | None
    """A ``peft.PeftConfig`` node; ``None`` fine-tunes every weight."""
    chunks: int
    """Slices of an epoch, C in the formula of :func:`rfflow.runs.chunk_ends`."""
    evaluate: bool = True
    """Evaluate at every chunk boundary where there is an evaluation set."""
    config: Node = field(default_factory=dict)
    """The resolved configuration this was read from, for people to look at."""
    generate: GenerateSpec | None = None
    """What to answer at every chunk boundary, if anything."""
    build: Callable[[], Any] | None = None
    """Builds the trainer, where an app does that itself; ``model``, ``dataset``, ``trainer`` and ``peft`` say nothing
    then."""
    experiment: Node | None = None
    """What belongs to the experiment, where it does not stand at the root of the configuration."""


@dataclass(frozen=True)
class Objective:
    """The metric that ranks the runs."""

    metric: str = "eval_loss"
    direction: Literal["minimize", "maximize"] = "minimize"

    def value(self, metrics: Mapping[str, float]) -> float | None:
        """Return the metric; without an evaluation set the training loss stands in for ``eval_loss``."""
        if self.metric == "eval_loss" and "eval_loss" not in metrics:
            return metrics.get("loss")
        return metrics.get(self.metric)

    def sort_key(self, metrics: Mapping[str, float]) -> tuple[bool, bool, float]:
        """Order from best to worst.

        Runs where the training loss stands in come after those that were evaluated; those without either, or with NaN,
        come last.
        """
        value = self.value(metrics)
        if value is None or value != value:
            return (True, True, 0.0)
        return (False, self.metric not in metrics, value if self.direction == "minimize" else -value)


@dataclass(frozen=True)
class MemorySpec:
    """How much of the machine suspended runs may hold; sizes are bytes or text such as ``8GB``."""

    device_limit: int | str | None = None
    """On the device; ``None`` is what is free whenever it is asked for."""
    host_limit: int | str | None = None
    """On the host, before runs go to disk; ``None`` is half of what was free at the start."""


@dataclass(frozen=True)
class ControlSpec:
    """How people reach a running experiment."""

    enabled: bool = True
    dir: str | None = None
    """The watched directory; ``None`` is ``control`` in the experiment's own directory."""
    idle_timeout: float | None = 600
    """Seconds to wait for an op once every live run is stopped; ``None`` waits for ever."""
    polling: bool = False
    """Look at the directory from time to time instead of being told (NFS needs it)."""


KEEP = ("last", "best", "final")


@dataclass(frozen=True)
class CheckpointSpec:
    """What is saved, so that an experiment can be gone on with after a crash."""

    every: int | None = 1
    """Chunks between two checkpoints of a run; ``None`` saves nothing, and nothing can be gone on with."""
    keep: tuple[str, ...] = ("final",)
    """What stays of a run that has completed: its ``last`` checkpoint before the end, its ``best`` one by the
    objective, the ``final`` adapter or model. While a run goes, its newest two checkpoints stay in any case."""
    grace: float = 30
    """Seconds from a SIGTERM until the process is left, whether everything is saved or not."""


@dataclass(frozen=True)
class ExperimentSpec:
    """What all runs of an experiment have in common."""

    name: str
    objective: Objective = field(default_factory=Objective)
    seed: int = 42
    accelerator: str = "auto"
    """What Lightning Fabric runs on: auto, cpu, cuda, mps."""
    device: int = 0
    """Which GPU, counted among those that CUDA_VISIBLE_DEVICES shows."""
    capture_output: bool = True
    """Send what libraries print while a run trains to the run's log file."""
    loggers: Mapping[str, Node] = field(default_factory=dict)
    """Lightning Fabric loggers."""
    callbacks: Mapping[str, Node] = field(default_factory=dict)
    """Lightning Fabric callbacks; their hooks are listed in :class:`rfflow.runs.Callback`."""
    memory: MemorySpec = field(default_factory=MemorySpec)
    control: ControlSpec = field(default_factory=ControlSpec)
    checkpoint: CheckpointSpec = field(default_factory=CheckpointSpec)
    policy: Node | None = None
    """A policy by ``_target_`` (:class:`rfflow.policies.Policy`), with ``dry_run`` and ``name`` of rfflow's own."""
    on_nan: Literal["fail", "stop", "ignore"] = "fail"
    """What becomes of a run whose loss or weights are not numbers any more."""


# --- from DictConfig --------------------------------------------------------------------------------------------------


def read_run(cfg: DictConfig) -> RunSpec:
    """Read and check one job's configuration."""
    config = _to_container(cfg)
    model = _read_model(_section(config, "model"))
    trainer = _read_trainer(_section(config, "trainer"), model)
    if trainer.target.endswith("RewardTrainer"):
        seed = trainer.args.get("seed")
        head = {"auto_class": "AutoModelForSequenceClassification", "num_labels": 1}
        head["head_seed"] = 42 if seed is None else seed  # TRL's own default
        model = replace(model, kwargs={**head, **model.kwargs})
    return RunSpec(
        model=model,
        dataset=_read_dataset(_section(config, "dataset")),
        trainer=trainer,
        peft=_read_peft(config.get("peft")),
        chunks=_at_least_one(config.get("chunks", 1), "chunks"),
        evaluate=_boolean(config.get("evaluate", True), "evaluate"),
        config=config,
        generate=_read_generate(config.get("evaluation")),
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
        chunks=_at_least_one(chunks, "rfflow.chunks"),
        evaluate=_boolean(evaluate, "rfflow.evaluate"),
        config=config,
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


EXPERIMENT_KEYS = ("name", "objective", "engine", "control", "checkpoint", "policy", "search", "loggers", "callbacks")


def read_experiment(cfg: DictConfig) -> ExperimentSpec:
    """Read and check what the runs of an experiment share."""
    config = _to_container(cfg)
    engine = _settings(config.get("engine"), "engine", ("accelerator", "device", "capture_output", "memory", "on_nan"))
    memory = _settings(engine.pop("memory", None), "engine.memory", [f.name for f in fields(MemorySpec)])
    if engine.get("on_nan", "fail") not in ("fail", "stop", "ignore"):
        raise ConfigError(f"engine.on_nan is {engine['on_nan']!r}. Allowed: fail, stop, ignore.")
    control = _settings(config.get("control"), "control", [f.name for f in fields(ControlSpec)])
    return ExperimentSpec(
        name=str(config.get("name", "experiment")),
        objective=_read_objective(config.get("objective")),
        seed=int(config.get("seed") or 0),
        loggers={key: node for key, node in (config.get("loggers") or {}).items() if node},
        callbacks={key: node for key, node in (config.get("callbacks") or {}).items() if node},
        memory=MemorySpec(**memory),
        control=_check_control(ControlSpec(**control)),
        checkpoint=_read_checkpoint(config.get("checkpoint")),
        policy=_read_policy(config.get("policy")),
        **engine,
    )


def _settings(section: Any, name: str, allowed: Sequence[str]) -> dict[str, Any]:
    section = dict(section or {})
    for key in section:
        if key not in allowed:
            raise ConfigError(f"{name}.{key} is not a setting.{nearest(key, allowed)} Allowed: {', '.join(allowed)}.")
    return section


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
        _at_least_one(settings.get("every", 1), "checkpoint.every")
    grace = settings.get("grace", CheckpointSpec.grace)
    if isinstance(grace, bool) or not isinstance(grace, (int, float)) or grace < 0:
        raise ConfigError(f"checkpoint.grace is {grace!r}. Allowed: seconds from 0 up.")
    return CheckpointSpec(keep=keep, **settings)


def _to_container(cfg: DictConfig) -> dict[str, Any]:
    try:
        container = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"The configuration is not complete: {error}") from error
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


def _read_dataset(section: dict[str, Any]) -> DatasetSpec:
    spec = DatasetSpec(**_without_none(_settings(section, "dataset", [f.name for f in fields(DatasetSpec)])))
    if (spec.path is None) == (spec.name is None):
        raise ConfigError(
            "Give either dataset.path (a JSONL, JSON, CSV or Parquet file) or dataset.name (a hub data set). "
            f"Seen: path={spec.path!r}, name={spec.name!r}."
        )
    if spec.sample_by not in ("line", "paragraph", "document"):
        raise ConfigError(f"dataset.sample_by is {spec.sample_by!r}. Allowed: line, paragraph, document.")
    return spec


def _read_trainer(section: dict[str, Any], model: ModelSpec) -> TrainerSpec:
    target = section.pop("_target_", None)
    args = section.pop("args", None)
    if not target or not isinstance(args, Mapping) or "_target_" not in args:
        raise ConfigError(
            f"trainer needs a _target_ (seen: {target!r}) and args with a _target_ of their own (seen: {args!r}). "
            "Choose one with trainer=sft."
        )
    callbacks = section.pop("callbacks", None) or []
    if isinstance(callbacks, Mapping):
        callbacks = list(callbacks.values())
    return TrainerSpec(
        target=target,
        args_target=args["_target_"],
        args={key: value for key, value in args.items() if key != "_target_"},
        callbacks=tuple(callbacks),
        ref_model=_read_reference(section.pop("ref_model", None), model),
        kwargs=_without_none(section),
    )


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


def _read_objective(section: Any) -> Objective:
    objective = Objective(**_settings(section, "objective", ("metric", "direction")))
    if objective.direction not in ("minimize", "maximize"):
        raise ConfigError(f"objective.direction is {objective.direction!r}. Allowed: minimize, maximize.")
    return objective


def _without_none(section: Node) -> dict[str, Any]:
    return {key: value for key, value in section.items() if value is not None}


def _at_least_one(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} is {value!r}. Allowed: a whole number from 1 up.")
    return value


def _boolean(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{name} is {value!r}. Allowed: true, false.")
    return value
