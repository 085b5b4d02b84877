"""From a file, folder or hub name to the rows that a trainer reads.

The rows stay on disk, memory-mapped, because ``datasets`` remembers what ``map`` made of rows only when they are on
disk: runs that tokenize the same rows in the same way then find the first one's work (20,000 rows: 8 s, then 0.01 s).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
from datasets import Dataset, Json, Value

from rfflow.errors import ConfigError, nearest
from rfflow.spec import DatasetSpec, TrainerSpec
from rfflow.training.reading import read_hub, read_path, shortened, store
from rfflow.training.sources import existing_path, import_object, listing, looks_local, resolve_function

log = logging.getLogger(__name__)

# The columns that each trainer of TRL can train on. A trainer that is not here checks its columns itself.
FORMS: Mapping[str, Sequence[tuple[str, ...]]] = {
    "SFTTrainer": (("prompt", "completion"), ("text",), ("messages",), ("conversations",), ("input_ids",)),
    "DPOTrainer": (("prompt", "chosen", "rejected"), ("chosen", "rejected")),
    "RewardTrainer": (("prompt", "chosen", "rejected"), ("chosen", "rejected")),
    "KTOTrainer": (("prompt", "completion", "label"), ("prompt", "chosen", "rejected")),
    "GRPOTrainer": (("prompt",),),
    "RLOOTrainer": (("prompt",),),
}


@dataclass(frozen=True)
class Data:
    """Rows to train and to evaluate on, not yet tokenized."""

    train: Dataset
    eval: Dataset | None = None


def load_data(spec: DatasetSpec, seed: int, trainer: TrainerSpec | None = None) -> Data:
    """Load the rows of a run.

    In this order: ``columns``, then the rows held out by ``eval_size`` (drawn with ``seed``, the others keep their
    order), then ``max_samples``, then ``formatting_func``, and last rows with an empty column are dropped.

    Args:
        spec: where the rows come from.
        seed: draws the held-out rows; the experiment's, so that all runs hold out the same.
        trainer: whose columns must be there; without it, the columns of any of TRL's trainers.

    Raises:
        ConfigError: for whatever would stop the training, or leave nothing to train on.
    """
    datasets.disable_progress_bars()
    try:
        return _load(spec, seed, trainer)
    except UnicodeDecodeError as error:  # `datasets` reads JSON without a look at the letters in it
        names = " or ".join(filter(None, (_source(spec), spec.eval_path)))
        raise ConfigError(f"The data set {names} is not UTF-8 text: {error}. Save it as UTF-8.") from error


def _load(spec: DatasetSpec, seed: int, trainer: TrainerSpec | None) -> Data:
    for key in ("max_samples", "max_eval_samples"):
        value = getattr(spec, key)
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ConfigError(f"dataset.{key} is {value!r}. Allowed: a whole number from 1 up.")
    train = _select_columns(_read_train(spec), spec)
    held_out = _read_eval(spec)
    rows = np.arange(len(train))
    if held_out is not None:
        held_out = _select_columns(held_out, spec)
        eval_rows = np.arange(len(held_out))
    elif spec.eval_size:
        held_out = train
        rows, eval_rows = _hold_out(len(train), spec.eval_size, seed)
    train = _finish(train, rows[: spec.max_samples], spec, trainer, f"The data set {_source(spec)}")
    if held_out is not None:
        source = f"The evaluation set {spec.eval_path or spec.eval_split or f'held out of {_source(spec)}'}"
        held_out = _finish(held_out, eval_rows[: spec.max_eval_samples], spec, trainer, source)
    return Data(train, held_out)


def fingerprint(data: Data) -> str:
    """Return a fingerprint of the rows: their number, their columns, and up to 20,000 of them, evenly chosen."""
    digest = hashlib.sha256()
    for rows in (data.train, data.eval):
        if rows is None:
            continue
        digest.update(f"{len(rows)} {rows.column_names}\n".encode())
        step = -(-len(rows) // 20_000)
        for batch in (rows if step == 1 else rows.select(range(0, len(rows), step))).iter(1000):
            digest.update(json.dumps(batch, default=str).encode())
    return digest.hexdigest()[:32]


def _finish(dataset: Dataset, rows: np.ndarray, spec: DatasetSpec, trainer: TrainerSpec | None, source: str) -> Dataset:
    """Keep these rows, formatted, without the empty ones."""
    if len(rows) < len(dataset):
        dataset = dataset.select(rows)
    if spec.formatting_func is not None:
        dataset = _format(dataset, spec.formatting_func, rows)
    check_columns(dataset, trainer, source)
    read = [column for column in _text_columns(_forms(trainer)) if column in dataset.column_names]
    filled = _drop_empty(_integers_to_text(dataset, read), read, rows)
    if not len(filled):
        why = f": in each of {len(dataset)}, {' or '.join(read)} is empty" if len(dataset) else ""
        raise ConfigError(f"{source} has no rows to work with{why}.")
    return filled


def _source(spec: DatasetSpec) -> str:
    return str(spec.path or spec.name)


def _read_train(spec: DatasetSpec) -> Dataset:
    if spec.path is not None:
        return read_path(spec.path, spec.split, "dataset.path", sample_by=spec.sample_by)
    assert spec.name is not None
    if looks_local(spec.name):
        raise ConfigError(f"dataset.name is {spec.name!r}, which looks like a file: give it as dataset.path.")
    return read_hub(spec.name, spec.config, spec.split)


def _read_eval(spec: DatasetSpec) -> Dataset | None:
    if spec.eval_path is not None:
        return read_path(spec.eval_path, spec.eval_split or "train", "dataset.eval_path", sample_by=spec.sample_by)
    if spec.eval_split is None:
        return None
    if spec.path is not None:
        if existing_path(spec.path, "dataset.path").is_file():
            raise ConfigError(
                f"dataset.eval_split is {spec.eval_split!r}, but {spec.path} is one file and has no splits. "
                "Give dataset.eval_path or dataset.eval_size."
            )
        return read_path(spec.path, spec.eval_split, "dataset.path", "eval_split")
    assert spec.name is not None
    return read_hub(spec.name, spec.config, spec.eval_split)


# --- choosing ---------------------------------------------------------------------------------------------------------


def _select_columns(dataset: Dataset, spec: DatasetSpec) -> Dataset:
    if not spec.columns:
        return dataset
    present = dataset.column_names
    for column in spec.columns:
        if column not in present:
            raise ConfigError(
                f"dataset.columns: there is no column {column!r} in {_source(spec)}.{nearest(column, present)} "
                f"Columns there: {', '.join(present)}."
            )
    wanted = list(spec.columns.values())
    if len(set(wanted)) < len(wanted):
        raise ConfigError(f"dataset.columns gives two columns the same name: {', '.join(wanted)}.")
    return dataset.select_columns(list(spec.columns)).rename_columns(dict(spec.columns))


def _hold_out(count: int, size: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the row numbers to train on and those held out, both ascending."""
    held_out = size if isinstance(size, int) else int(count * size) if 0 < size < 1 else 0
    if isinstance(size, bool) or not 0 < held_out < count:
        raise ConfigError(
            f"dataset.eval_size is {size!r}, which does not fit {count} {'row' if count == 1 else 'rows'}. "
            f"Allowed: {f'rows from 1 to {count - 1}, ' if count > 1 else ''}a share between 0 and 1 that is at least "
            "one row, or 0 to hold none out."
        )
    drawn = np.random.default_rng(seed).permutation(count)
    return np.sort(drawn[held_out:]), np.sort(drawn[:held_out])


# --- formatting -------------------------------------------------------------------------------------------------------


def _format(dataset: Dataset, node: Mapping[str, Any], rows: np.ndarray) -> Dataset:
    function = resolve_function(node, "dataset.formatting_func")
    name = node["_target_"] if isinstance(node, Mapping) else node
    expected: set[str] = set()

    def apply(row: Mapping[str, Any], index: int) -> dict[str, Any]:
        place = f"dataset.formatting_func {name}, row {rows[index]} (from 0)"
        values = dict(row)  # reads it from the file, which may fail for another reason than the function does
        try:
            result = function(values)
        except Exception as error:
            raise ConfigError(
                f"{place}: {type(error).__name__}: {error}. Columns of the row: {', '.join(row)}."
            ) from error
        if isinstance(result, str):
            result = {"text": result}
        if not isinstance(result, Mapping) or not result:
            raise ConfigError(
                f"{place}: returned {shortened(repr(result))} of type {type(result).__name__}. "
                "Allowed: a string (the text), or a dict of columns."
            )
        if expected and expected != set(result):
            raise ConfigError(
                f"{place}: returned the columns {', '.join(result)}, earlier rows {', '.join(sorted(expected))}."
            )
        expected.update(result)
        return dict(result)

    try:
        return store(dataset, apply, with_indices=True, remove_columns=dataset.column_names)
    except UnicodeDecodeError:
        raise
    except (ValueError, TypeError, NotImplementedError) as error:  # pyarrow's errors are these
        raise ConfigError(
            f"dataset.formatting_func {name}: the rows it returns do not fit together: {error}"
        ) from error


# --- checking ---------------------------------------------------------------------------------------------------------


def check_columns(dataset: Dataset, trainer: TrainerSpec | None = None, source: str = "The data set") -> None:
    """Check that a trainer finds columns to train on.

    Raises:
        ConfigError: if it does not; it says which columns are there and which the trainer reads.
    """
    if trainer is not None and not _reads_known_columns(trainer):
        return
    forms = _forms(trainer)
    present = dataset.column_names
    if any(set(present).issuperset(form) for form in forms):
        return
    raise ConfigError(
        f"{source} has the columns {', '.join(present)}. {trainer.target if trainer else 'A trainer'} reads "
        f"{', or '.join(' + '.join(form) for form in forms)}. Rename them "
        "(dataset.columns={question: prompt, answer: completion}) or give a dataset.formatting_func."
    )


def _reads_known_columns(trainer: TrainerSpec) -> bool:
    prepared = (trainer.args.get("dataset_kwargs") or {}).get("skip_prepare_dataset")
    return _class_name(trainer) in FORMS and not prepared and "formatting_func" not in trainer.kwargs


def _forms(trainer: TrainerSpec | None) -> list[tuple[str, ...]]:
    """Return the sets of columns that a trainer can train on; those of any, where it is not known."""
    text = (trainer.args.get("dataset_text_field") if trainer else None) or "text"
    known = FORMS.get(_class_name(trainer)) if trainer else None
    forms = known or [form for forms in FORMS.values() for form in forms]
    return list(dict.fromkeys(tuple(text if column == "text" else column for column in form) for form in forms))


def _class_name(trainer: TrainerSpec) -> str:
    """Return the trainer's name, and for one made from TRL's that reads its rows as TRL does, the name of TRL's."""
    name = trainer.target.rpartition(".")[2]
    if name in FORMS:
        return name
    found = import_object(trainer.target, "trainer._target_")
    for cls in getattr(found, "__mro__", ()):
        if cls.__name__ in FORMS:
            return str(cls.__name__)
        if "_prepare_dataset" in vars(cls):
            break
    return name


def _text_columns(forms: Sequence[tuple[str, ...]]) -> list[str]:
    columns = dict.fromkeys(column for form in forms for column in form)
    return [column for column in columns if column not in ("label", "input_ids")]


def _integers_to_text(dataset: Dataset, read: list[str]) -> Dataset:
    """A CSV file has no way to say that the answer 42 is text."""
    for column in read:
        feature = dataset.features[column]
        if isinstance(feature, Json):
            raise ConfigError(
                f"The column {column!r} holds text in some rows and something else in others. "
                "Make it text with a dataset.formatting_func."
            )
        if not isinstance(feature, Value) or feature.dtype in ("string", "large_string", "null"):
            continue
        if not feature.dtype.startswith(("int", "uint")):
            raise ConfigError(
                f"The column {column!r} holds {feature.dtype}, not text. Make it text with a dataset.formatting_func."
            )
        log.info("The column %r holds numbers; they are read as text", column)
        dataset = dataset.cast_column(column, Value("string"))
    return dataset


def _drop_empty(dataset: Dataset, read: list[str], rows: np.ndarray) -> Dataset:
    """Drop the rows in which a column that trainers read is missing, blank or an empty list.

    There is nothing to learn from half a row, and a missing value stops TRL in the midst of tokenizing.
    """
    if not read:
        return dataset
    kept: list[int] = []
    for start, batch in enumerate(dataset.select_columns(read).iter(1000)):
        columns = [batch[column] for column in read]
        kept += [start * 1000 + index for index, values in enumerate(zip(*columns, strict=True)) if _filled(values)]
    if len(kept) == len(dataset):
        return dataset
    dropped = np.delete(rows[: len(dataset)], kept)
    log.warning(
        "%d of %d rows are dropped, with nothing in %s: row %s (from 0)",
        len(dropped),
        len(dataset),
        " or ".join(read),
        listing(str(row) for row in dropped),
    )
    return dataset.select(kept)


def _filled(values: Sequence[Any]) -> bool:
    return all(bool(value.strip() if isinstance(value, str) else value) for value in values)
