"""Do rows, batches and model fit together? Said in a sentence with the figures, before anything is tokenized."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments

from rfflow.errors import ConfigError
from rfflow.worker.data.lines import shortened
from rfflow.worker.data.rows import Data


def check_rows(args: TrainingArguments, data: Data, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check what every trainer needs of its rows.

    Raises:
        ConfigError: for conversations without a chat template, for an evaluation without rows, and for fewer rows than
            a batch that must be full.
    """
    row = data.train[0] if len(data.train) else {}
    talks = [name for name in ("messages", "prompt", "completion", "chosen") if _is_conversation(row.get(name))]
    if talks and not tokenizer.chat_template and not getattr(args, "chat_template_path", None):
        raise ConfigError(
            f"The column {talks[0]!r} holds conversations, and the tokenizer of the model has no chat template to "
            "write them with. Take a model that was taught to chat or its tokenizer (model.tokenizer=...), or make "
            "them text with a dataset.formatting_func."
        )
    if hasattr(args, "desirable_weight") and not isinstance(row.get("label", True), bool | int):
        raise ConfigError(
            f"The column 'label' holds {row['label']!r}. Allowed: true for answers like those wanted, false for others."
        )
    if args.eval_on_start and data.eval is None:
        raise ConfigError(
            "trainer.args.eval_on_start is true, and there is nothing to evaluate on. Give dataset.eval_path, "
            "eval_split or eval_size, or say trainer.args.eval_on_start=false."
        )
    _check_best_metric(args, data)
    if not args.dataloader_drop_last:
        return
    key = "per_device_train_batch_size"
    for name, rows in (("training", data.train), *data.evaluation_sets().items()):
        size = getattr(args, key)
        if len(rows) < size:
            raise ConfigError(
                f"The {name} set has {len(rows)} rows, fewer than a batch (trainer.args.{key} is {size}), and "
                "trainer.args.dataloader_drop_last leaves out what does not fill one. Make the batch smaller."
            )
        key = "per_device_eval_batch_size"


def _check_best_metric(args: TrainingArguments, data: Data) -> None:
    """Of several evaluation sets the trainer itself has no eval_loss: it would raise at its first evaluation."""
    metric = args.metric_for_best_model
    if metric is None or not isinstance(data.eval, dict) or args.eval_strategy == "no":
        return
    name = metric if metric.startswith("eval_") else f"eval_{metric}"
    if not any(name.startswith(f"eval_{each}_") for each in data.eval):
        raise ConfigError(
            f"trainer.args.metric_for_best_model is {metric!r}, but the metrics of several evaluation sets have their "
            f"names in theirs. Say {' or '.join(f'eval_{each}_loss' for each in data.eval)}."
        )


def check_tokenized(trainer: Trainer, data: Data) -> None:
    """Check that rows are left: TRL drops those whose answer lies beyond ``max_length``, and says nothing.

    Raises:
        ConfigError: if that was all of them.
    """
    for name, left, rows in _tokenized(trainer, data):
        if len(left):
            continue
        raise ConfigError(
            f"Nothing is left of the {len(rows)} {name} rows: in each, what stands before the answer fills "
            f"trainer.args.max_length ({getattr(trainer.args, 'max_length', None)} tokens). Give more tokens, shorten "
            "the prompts, or keep the ends of the rows (trainer.args.truncation_mode=keep_end)."
        )


def what_is_dropped(trainer: Trainer, data: Data) -> list[str]:
    """Say how many rows TRL has left out, of which set, why, and the first of them."""
    said = []
    for name, left, rows in _tokenized(trainer, data):
        dropped = len(rows) - len(left)
        if dropped <= 0 or getattr(trainer.args, "packing", False):
            continue
        number = _first_dropped(left, rows, getattr(trainer.args, "shuffle_dataset", False))
        first = "" if number is None else f", first row {number} (from 0) of them: {_beginning(rows[number])}"
        said.append(
            f"TRL drops {dropped} of {len(rows)} {name} rows, which are longer than trainer.args.max_length "
            f"({getattr(trainer.args, 'max_length', None)} tokens) before any answer{first}"
        )
    return said


def _tokenized(trainer: Trainer, data: Data) -> Iterator[tuple[str, Dataset, Dataset]]:
    """Yield each set that a trainer has made of rows: its name, what is left, and the rows."""
    evaluated = trainer.eval_dataset if isinstance(trainer.eval_dataset, dict) else {"evaluation": trainer.eval_dataset}
    made = [("training", trainer.train_dataset, data.train)]
    made += [(name, evaluated.get(name), rows) for name, rows in data.evaluation_sets().items()]
    yield from ((name, left, rows) for name, left, rows in made if len(rows) and isinstance(left, Dataset))


def _first_dropped(left: Dataset, rows: Dataset, is_shuffled: bool) -> int | None:
    """Return the first row that is not left, where a column that TRL has not changed tells."""
    column = next((each for each in ("prompt", "chosen") if each in rows.column_names), None)
    if column is None or column not in left.column_names or is_shuffled:
        return None
    kept = (row[column] for row in left.select_columns([column]))
    waiting, first = next(kept, None), None
    for number, row in enumerate(rows.select_columns([column])):
        if row[column] == waiting:
            waiting = next(kept, None)
        elif first is None:
            first = number
    return first if next(kept, waiting) is None else None


def _beginning(row: Mapping[str, Any]) -> str:
    return shortened(str(next(row[each] for each in ("prompt", "chosen") if each in row)))


def check_generation(args: TrainingArguments, data: Data, given: Mapping[str, Any]) -> None:
    """Check what trainers need that generate their own answers.

    Args:
        args: the trainer's.
        data: the rows.
        given: what else the trainer is made with.

    Raises:
        ConfigError: naming both of two figures that do not fit, and tools that nobody would be shown.
    """
    row = data.train[0] if len(data.train) else {}
    for key in ("tools", "environment_factory"):
        if given.get(key) and "prompt" in row and not _is_conversation(row["prompt"]):
            raise ConfigError(
                f"trainer.{key} is given, but the column 'prompt' holds text, and only in a conversation is the model "
                "shown what tools there are. Make the prompts [{role: user, content: ...}], by a "
                "dataset.formatting_func say."
            )
    reward_funcs: Sequence[Any] = given.get("reward_funcs") or []
    weights = getattr(args, "reward_weights", None)
    if weights is not None and len(weights) != len(reward_funcs):
        raise ConfigError(
            f"trainer.args: {len(weights)} reward_weights for {len(reward_funcs)} reward_funcs. Give each its weight."
        )
    batch, generations = getattr(args, "generation_batch_size", None), getattr(args, "num_generations", None)
    if batch and generations and len(data.train) < batch // generations:
        raise ConfigError(
            f"The training set has {len(data.train)} rows, but one generation takes {batch // generations} different "
            f"prompts (per_device_train_batch_size {args.per_device_train_batch_size} * steps_per_generation "
            f"{args.steps_per_generation} / num_generations {generations}). Make one smaller, or take more rows."
        )
    in_evaluation = getattr(args, "num_generations_eval", None) or generations
    if data.eval is not None and in_evaluation and args.per_device_eval_batch_size % in_evaluation:
        raise ConfigError(
            f"trainer.args.per_device_eval_batch_size is {args.per_device_eval_batch_size}, which the "
            f"{in_evaluation} answers to each prompt do not divide (num_generations, or num_generations_eval)."
        )


def _is_conversation(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and "role" in value[0]
