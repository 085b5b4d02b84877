"""What is to be done, as frozen dataclasses: one for a run, one for an experiment.

:mod:`rfflow.config.experiment` reads them from Hydra's configurations; nothing behind it knows of those.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

Paths = str | tuple[str, ...]
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

    path: str | tuple[str, ...] | None = None
    """A JSONL, JSON, CSV, Parquet or .txt file, a folder of them or saved by ``datasets``, ``pkg://package/file``, or a
    pattern such as ``data/*.jsonl``; several are read one after the other."""
    name: str | None = None
    """A data set on the Hugging Face hub."""
    config: str | None = None
    """The hub data set's configuration name."""
    split: str = "train"
    """The hub data set's (or the saved folder's) split to train on."""
    eval_path: Paths | Mapping[str, Paths] | None = None
    """What to evaluate on, as ``path``; by name for several sets, each of which has its own metrics."""
    eval_split: str | Mapping[str, str] | None = None
    """A second split to evaluate on; by name for several."""
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
    """Evaluate on the first so many rows, of each set."""
    datasets: tuple[DatasetSpec, ...] = ()
    """Several data sets for one, as in TRL's ``DatasetMixtureConfig``, in the place of ``path`` or ``name``."""
    fraction: float | None = None
    """Of one of ``datasets``: its share of the mixture, which takes no row twice (TRL's ``DatasetConfig``)."""
    probabilities: tuple[float, ...] | None = None
    """How often the next row comes from each of several (``datasets.interleave_datasets``)."""
    stopping_strategy: str | None = None
    """When interleaving ends: ``first_exhausted``, ``all_exhausted`` or ``all_exhausted_without_replacement``."""
    seed: int | None = None
    """Draws by ``probabilities``; ``None`` is the experiment's."""

    @property
    def key(self) -> str:
        """Equal for two runs exactly when they train on the same rows."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        mixture = [[name, given.pop(name)] for name in _MIXTURE]  # apart, so that older experiments know their rows
        said = [*given.values(), *(pair for pair in mixture if pair[1] not in (None, ()))]
        return json.dumps(said, sort_keys=True, default=_plain)


def _plain(value: Any) -> Any:
    return asdict(value) if isinstance(value, DatasetSpec) else str(value)


_MIXTURE = ("datasets", "fraction", "probabilities", "stopping_strategy", "seed")


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


AUTO = "auto"
"""What ``trainer.args.activation_checkpointing`` may be besides true and false."""


@dataclass(frozen=True)
class PromptSpec:
    """What a model is asked, as Jinja templates."""

    user: str
    """Of a question; it may use ``question``, ``passages`` and the columns of the row."""
    system: str | None = None
    """What stands before it, if anything."""
    fewshot: int = 0
    """Examples that come first, from the rows that are not scored."""
    answer: str = "{{ reference }}"
    """Of an example's answer."""


@dataclass(frozen=True)
class EvaluationSpec:
    """What answers the questions, and how the answers are scored."""

    generator: Node | None
    """What answers prompts, by ``_target_``."""
    pipeline: Node | None = None
    """In the place of retriever, prompt and generator: a function that takes an item and returns the answer."""
    prompt: PromptSpec | None = None
    corpus: DatasetSpec | None = None
    """The documents in which the retriever looks."""
    retriever: Node | None = None
    """What finds passages, by ``_target_``; ``None`` finds none."""
    chunker: Node | None = None
    """A function that cuts a document into passages; ``None`` leaves it whole."""
    k: int = 3
    """How many passages a question gets."""
    reranker: Node | None = None
    """What puts passages in order once more, by ``_target_``."""
    reranked: int = 20
    """How many it is given, of which the first ``k`` are kept."""
    concurrency: int = 8
    """How many questions an async generator or pipeline has at a time."""
    metrics: Mapping[str, Node] = field(default_factory=dict)
    """Functions by ``_target_``, by what they are called; ``range`` beside it holds the least and greatest score."""
    level: float = 0.95
    """How surely all intervals hold together."""
    interval: Literal["auto", "exact", "anytime"] = "auto"
    candidates: int | None = None
    """For how many candidates they hold; ``None`` is as many as the experiment begins with, or a search will make."""
    baseline: int | None = None
    """The run with which all others are compared, besides the leading one."""


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One configuration: a :class:`TrainSpec`, a :class:`BuiltSpec` or an :class:`EvalSpec`."""

    chunks: int
    """Slices of an epoch, C in the formula of :func:`rfflow.runs.chunks.chunk_ends`; shards of an evaluation."""
    config: Node = field(default_factory=dict)
    """The configuration this was read from, resolved, for people to look at: without what is not for all eyes."""
    hidden: Mapping[str, str] = field(default_factory=dict, repr=False)
    """What it shows only by the variable of the environment that it comes from, by dotted names; no secrets."""
    experiment: Node | None = None
    """What belongs to the experiment, where it does not stand at the root of the configuration."""
    unread: tuple[str, ...] = ()
    """Keys at the root of the configuration that are not ours and that nothing refers to."""


@dataclass(frozen=True, kw_only=True)
class TrainSpec(RunSpec):
    """A run that trains, read from a configuration of ours."""

    model: ModelSpec
    dataset: DatasetSpec
    trainer: TrainerSpec
    peft: Node | None
    """A ``peft.PeftConfig`` node; ``None`` fine-tunes every weight."""
    adapter: str | None = None
    """Where the weights are that the run's adapter begins with, if it does not begin at nothing."""
    evaluate: bool = True
    """Evaluate at every chunk boundary where there is an evaluation set."""
    generate: GenerateSpec | None = None
    """What to answer at every chunk boundary, if anything."""

    @property
    def chooses_activations(self) -> bool:
        """Whether activations are kept or recomputed as there is memory."""
        return self.trainer.args.get("activation_checkpointing") == AUTO


@dataclass(frozen=True, kw_only=True)
class BuiltSpec(RunSpec):
    """A run whose trainer an app builds by a function of its own."""

    build: Callable[[], Any]
    evaluate: bool = True
    """Evaluate at every chunk boundary where there is an evaluation set."""


@dataclass(frozen=True, kw_only=True)
class EvalSpec(RunSpec):
    """A run that trains nothing, and answers questions."""

    model: ModelSpec
    dataset: DatasetSpec
    evaluation: EvaluationSpec
    peft: Node | None = None
    """Of a clone that answers with its parent's weights: their configuration."""


@dataclass(frozen=True)
class Objective:
    """The metric that ranks the runs."""

    metric: str = "eval_loss"
    direction: Literal["minimize", "maximize"] = "minimize"

    def value(self, metrics: Mapping[str, float]) -> float | None:
        """Return the metric; where nothing was evaluated the training loss stands in for ``eval_loss``."""
        return metrics.get(self.standing([metrics]).metric)

    def standing(self, runs: Iterable[Mapping[str, float]]) -> Objective:
        """Return the objective by its true name: the training loss, where that stands in for all runs' ``eval_loss``.

        Args:
            runs: the metrics of each.
        """
        if self.metric != "eval_loss" or any("eval_loss" in metrics for metrics in runs):
            return self
        return replace(self, metric="loss")

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


@dataclass(frozen=True)
class LimitSpec:
    """What one quota of a server allows to all runs together; ``None`` is no limit."""

    rpm: float | None = None
    """Requests a minute."""
    tpm: float | None = None
    """Tokens a minute, those of the prompt and of the longest answer together."""
    concurrency: int | None = None
    """Requests on their way at a time."""
    usd: float | None = None
    """What the experiment may spend."""


@dataclass(frozen=True)
class PriceSpec:
    """What a million tokens cost, in USD."""

    input: float
    output: float

    def of(self, prompt: float, answer: float) -> float:
        """Return what so many tokens cost."""
        return (prompt * self.input + answer * self.output) / 1e6


@dataclass(frozen=True)
class QuotasSpec:
    """What servers allow and cost, by model, by host, or by ``host/model``."""

    limits: Mapping[str, LimitSpec] = field(default_factory=dict)
    prices: Mapping[str, PriceSpec] = field(default_factory=dict)


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
    searched: tuple[Objective, ...] = ()
    """What a search weighs against each other; empty where it goes by the one objective."""
    seed: int = 42
    accelerator: str = "auto"
    """What Lightning Fabric runs on: auto, cpu, cuda, mps."""
    devices: Literal["auto"] | int | tuple[int, ...] = "auto"
    """``auto``: all that are visible; a number: so many of them; or their places among those that are visible."""
    cluster: str | None = None
    """A Ray cluster on whose devices the runs train: ``auto``, ``local`` or ``host:port``."""
    capture_output: bool = True
    """Send what libraries print while a run trains to the run's log file."""
    loggers: Mapping[str, Node] = field(default_factory=dict)
    """Lightning Fabric loggers."""
    callbacks: Mapping[str, Node] = field(default_factory=dict)
    """Lightning Fabric callbacks; their hooks are listed in :class:`rfflow.runs.experiment.Callback`."""
    memory: MemorySpec = field(default_factory=MemorySpec)
    control: ControlSpec = field(default_factory=ControlSpec)
    checkpoint: CheckpointSpec = field(default_factory=CheckpointSpec)
    policy: Node | None = None
    """A policy by ``_target_`` (:class:`rfflow.policies.Policy`), with ``dry_run`` and ``name`` of rfflow's own."""
    on_nan: Literal["fail", "stop", "ignore"] = "fail"
    """What becomes of a run whose loss or weights are not numbers any more."""
    fusion: Literal["auto", "off", "slice", "cat", "grouped"] = "off"
    """Whether LoRA runs of one base go through it in one pass, and how their adapters are computed."""
    quotas: QuotasSpec = field(default_factory=QuotasSpec)


FUSIONS = ("off", "auto", "slice", "cat", "grouped")
EXPERIMENT_KEYS = (
    *("name", "objective", "engine", "control", "checkpoint", "policy", "search", "loggers", "callbacks"),
    *("limits", "prices"),
)
"""What of a configuration belongs to the experiment: its runs cannot have their own."""
