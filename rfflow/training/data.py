"""From a file, folder or hub name to the rows that a trainer reads.

The rows stay on disk, memory-mapped, because ``datasets`` remembers what ``map`` made of rows only when they are on
disk: runs that tokenize the same rows in the same way then find the first one's work (20,000 rows: 8 s, then 0.01 s).
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import datasets
import numpy as np
from datasets import Dataset

from rfflow.errors import ConfigError, nearest
from rfflow.spec import DatasetSpec, TrainerSpec
from rfflow.training.contents import as_text, check_filled, labels_as_booleans
from rfflow.training.mixing import mixed
from rfflow.training.reading import Source, joined, read_hub, read_path, together
from rfflow.training.sources import existing_path, import_object, listing, looks_local, resolve_function
from rfflow.training.storing import store
from rfflow.training.tables import shortened

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
    eval: Dataset | dict[str, Dataset] | None = None
    """By name where there are several sets."""

    def evaluation_sets(self) -> dict[str, Dataset]:
        """Return the sets to evaluate on; one alone is called "evaluation"."""
        if self.eval is None:
            return {}
        return self.eval if isinstance(self.eval, dict) else {"evaluation": self.eval}


def load_data(spec: DatasetSpec, seed: int, trainer: TrainerSpec | None = None) -> Data:
    """Load the rows of a run.

    In this order: ``columns``, then the rows held out by ``eval_size`` (drawn with ``seed``, the others keep their
    order), then the mixture of several data sets, then ``max_samples``, and last ``formatting_func``, which one of
    several that has its own has been through before it was mixed. No row is left out that TRL alone would train on.

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
    except UnicodeDecodeError as error:  # of Parquet, say, which nobody has looked into before
        names = " or ".join([_source(spec), *([str(spec.eval_path)] if spec.eval_path else [])])
        raise ConfigError(f"The data set {names} is not UTF-8 text: {error}. Save it as UTF-8.") from error


def _load(spec: DatasetSpec, seed: int, trainer: TrainerSpec | None) -> Data:
    for key in ("max_samples", "max_eval_samples"):
        value = getattr(spec, key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ConfigError(f"dataset.{key} is {value!r}. Allowed: a whole number from 1 up.")
    parts = [_read(part, trainer) for part in _parts(spec)]
    sets = {name: _read(part, trainer) for name, part in _evaluation_parts(spec).items()}
    _say_what_is_read_twice(parts, sets)
    count = sum(len(part.source.rows) for part in parts)
    rows, held_out = np.arange(count), np.arange(0)
    if not sets and spec.eval_size:
        rows, held_out = _hold_out(count, spec.eval_size, seed)
    if len(parts) == 1:
        train = _finish(parts[0], rows[: spec.max_samples], trainer).rows
    else:
        train = mixed([_finish(part, own, trainer) for part, own in _by_part(parts, rows)], spec, seed)
        train = train.select(range(min(spec.max_samples or len(train), len(train))))
    if sets:
        first = slice(spec.max_eval_samples)
        made = {
            name: _finish(part, np.arange(len(part.source.rows))[first], trainer).rows for name, part in sets.items()
        }
        return Data(train, made.get("", made))
    if not len(held_out):
        return Data(train)
    name = f"The evaluation set held out of {_source(spec)}"
    held = [
        _finish(replace(part, title=name), own, trainer)
        for part, own in _by_part(parts, held_out[: spec.max_eval_samples])
        if len(own)
    ]
    return Data(train, joined(held, name).rows)


def fingerprint(data: Data) -> str:
    """Return a fingerprint of the rows: their number, their columns, and up to 20,000 of them, evenly chosen."""
    digest = hashlib.sha256()
    named = data.eval if isinstance(data.eval, dict) else {"": data.eval}
    for name, rows in [("", data.train), *named.items()]:
        if rows is None:
            continue
        digest.update(f"{name}{len(rows)} {rows.column_names}\n".encode())
        step = -(-len(rows) // 20_000)
        for batch in (rows if step == 1 else rows.select(range(0, len(rows), step))).iter(1000):
            digest.update(json.dumps(batch, default=str).encode())
    return digest.hexdigest()[:32]


# --- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _PartSpec:
    """One of the data sets that are mixed, or the only one; or an evaluation set."""

    spec: DatasetSpec
    title: str
    """How messages about its rows begin."""
    where: str = "dataset.path"
    split_key: str = "split"


@dataclass(frozen=True)
class _Part:
    """... as it was read."""

    spec: DatasetSpec
    title: str
    source: Source


def _source(spec: DatasetSpec) -> str:
    if spec.datasets:
        return " and ".join(map(_source, spec.datasets))
    return " and ".join(spec.path) if isinstance(spec.path, tuple) else str(spec.path or spec.name)


def _parts(spec: DatasetSpec) -> list[_PartSpec]:
    """Return what is mixed, each with what it takes over from the whole."""
    title = "The data set {}".format
    if spec.datasets:
        return [
            _PartSpec(
                replace(
                    part,
                    columns=part.columns or spec.columns,
                    sample_by=spec.sample_by if part.sample_by == DatasetSpec.sample_by else part.sample_by,
                    formatting_func=part.formatting_func or spec.formatting_func,
                ),
                title(_source(part)),
                f"dataset.datasets[{index}].path",
            )
            for index, part in enumerate(spec.datasets)
        ]
    if isinstance(spec.path, tuple) and (spec.probabilities is not None or spec.stopping_strategy is not None):
        return [
            _PartSpec(replace(spec, path=path), title(path), f"dataset.path[{index}]")
            for index, path in enumerate(spec.path)
        ]
    return [_PartSpec(spec, title(_source(spec)))]


def _evaluation_parts(spec: DatasetSpec) -> dict[str, _PartSpec]:
    """Return what is evaluated on, by name; one alone is called nothing."""
    if spec.eval_path is not None:
        named = spec.eval_path if isinstance(spec.eval_path, Mapping) else {"": spec.eval_path}
        split = spec.eval_split if isinstance(spec.eval_split, str) else "train"
        sets = {name: replace(spec, path=path, name=None, datasets=(), split=split) for name, path in named.items()}
        keys = ("dataset.eval_path", "split")
    elif spec.eval_split is None:
        return {}
    elif spec.datasets or isinstance(spec.path, tuple):
        raise ConfigError(
            f"dataset.eval_split is {spec.eval_split!r}, but there are several data sets. Give dataset.eval_path or "
            "dataset.eval_size."
        )
    elif spec.path is not None and not glob.has_magic(spec.path) and existing_path(spec.path, "dataset.path").is_file():
        raise ConfigError(
            f"dataset.eval_split is {spec.eval_split!r}, but {spec.path} is one file and has no splits. "
            "Give dataset.eval_path or dataset.eval_size."
        )
    else:
        splits = spec.eval_split if isinstance(spec.eval_split, Mapping) else {"": spec.eval_split}
        sets = {name: replace(spec, split=split) for name, split in splits.items()}
        keys = ("dataset.path", "eval_split")
    titles = {name: (_source(part) if spec.eval_path is not None else part.split) for name, part in sets.items()}
    return {
        name: _PartSpec(
            part,
            f"The evaluation set {titles[name]}" + (f" ({name})" if name else ""),
            f"{keys[0]}.{name}" if name and spec.eval_path is not None else keys[0],
            keys[1],
        )
        for name, part in sets.items()
    }


def _read(part: _PartSpec, trainer: TrainerSpec | None) -> _Part:
    """Read all rows of a part, with the columns that were chosen, and what is to be text as text."""
    spec = part.spec
    if spec.path is not None:
        paths = spec.path if isinstance(spec.path, tuple) else (spec.path,)
        sources = [
            source
            for path in paths
            for source in read_path(path, spec.split, part.where, part.split_key, spec.sample_by)
        ]
    else:
        assert spec.name is not None
        if looks_local(spec.name):
            raise ConfigError(f"dataset.name is {spec.name!r}, which looks like a file: give it as dataset.path.")
        sources = [read_hub(spec.name, spec.config, spec.split)]
    sources = [_select_columns(source, spec) for source in together(sources)]
    if spec.formatting_func is None:
        read = _text_columns(trainer)
        sources = [replace(source, rows=as_text(source.rows, read, source.place)) for source in sources]
    return _Part(spec, part.title, joined(sources, _source(spec)))


def _say_what_is_read_twice(parts: Sequence[_Part], sets: Mapping[str, _Part]) -> None:
    """Patterns match more than one thinks: a file twice, or what should only be evaluated on."""
    trained = [path.resolve() for part in parts for path, _ in part.source.files]
    twice = sorted({path for path in trained if trained.count(path) > 1}) if len(trained) < 1000 else []
    if twice:
        log.warning("dataset.path: read more than once: %s", listing(map(str, twice)))
    evaluated = {path.resolve() for part in sets.values() for path, _ in part.source.files}
    if both := sorted(evaluated.intersection(trained)):
        log.warning("dataset.eval_path: evaluated on, and trained on as well: %s", listing(map(str, both)))


def _by_part(parts: Sequence[_Part], rows: np.ndarray) -> list[tuple[_Part, np.ndarray]]:
    """Return each part with the numbers of its rows, where ``rows`` counts through all parts."""
    first, found = 0, []
    for part in parts:
        end = first + len(part.source.rows)
        found.append((part, rows[(rows >= first) & (rows < end)] - first))
        first = end
    return found


def _finish(part: _Part, rows: np.ndarray, trainer: TrainerSpec | None) -> Source:
    """Keep these rows, formatted and checked."""
    dataset, source = part.source.rows, part.source
    if len(rows) < len(dataset):
        dataset = dataset.select(rows)

    def place(index: int) -> str:
        return source.place(int(rows[index]))

    read = _text_columns(trainer)
    if part.spec.formatting_func is not None:
        dataset = as_text(_format(dataset, part.spec.formatting_func, place), read, place)
    check_columns(dataset, trainer, part.title)
    if not len(dataset):
        raise ConfigError(f"{part.title} has no rows to work with.")
    if "label" in dataset.column_names and read and any("label" in form for form in _forms(trainer)):
        dataset = labels_as_booleans(dataset, part.title, place)
    check_filled(dataset, [column for column in read if column in dataset.column_names], part.title, place)
    return Source(dataset, source.name)


# --- choosing ---------------------------------------------------------------------------------------------------------


def _select_columns(source: Source, spec: DatasetSpec) -> Source:
    if not spec.columns:
        return source
    present = source.rows.column_names
    for column in spec.columns:
        if column not in present:
            raise ConfigError(
                f"dataset.columns: there is no column {column!r} in {source.name}.{nearest(column, present)} "
                f"Columns there: {', '.join(present)}."
            )
    wanted = list(spec.columns.values())
    if len(set(wanted)) < len(wanted):
        raise ConfigError(f"dataset.columns gives two columns the same name: {', '.join(wanted)}.")
    return replace(source, rows=source.rows.select_columns(list(spec.columns)).rename_columns(dict(spec.columns)))


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


def _format(dataset: Dataset, node: Mapping[str, Any], place_of: Callable[[int], str]) -> Dataset:
    function = resolve_function(node, "dataset.formatting_func")
    name = node["_target_"] if isinstance(node, Mapping) else node
    expected: set[str] = set()

    def apply(row: Mapping[str, Any], index: int) -> dict[str, Any]:
        def place() -> str:
            return f"dataset.formatting_func {name}, {place_of(index)}"

        values = dict(row)  # reads it from the file, which may fail for another reason than the function does
        try:
            result = function(values)
        except Exception as error:
            raise ConfigError(
                f"{place()}: {type(error).__name__}: {error}. Columns of the row: {', '.join(row)}."
            ) from error
        if isinstance(result, str):
            result = {"text": result}
        if not isinstance(result, Mapping) or not result:
            raise ConfigError(
                f"{place()}: returned {shortened(repr(result))} of type {type(result).__name__}. "
                "Allowed: a string (the text), or a dict of columns."
            )
        if expected and expected != set(result):
            raise ConfigError(
                f"{place()}: returned the columns {', '.join(result)}, earlier rows {', '.join(sorted(expected))}."
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


def _text_columns(trainer: TrainerSpec | None) -> list[str]:
    """Return the columns that a trainer reads as text or conversations; none where only the trainer knows."""
    if trainer is not None and not _reads_known_columns(trainer):
        return []
    columns = dict.fromkeys(column for form in _forms(trainer) for column in form)
    return [column for column in columns if column not in ("label", "input_ids")]
