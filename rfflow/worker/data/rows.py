"""From a file, folder or hub name to the rows that a trainer reads.

The rows stay on disk, memory-mapped, because ``datasets`` remembers what ``map`` made of rows only when they are on
disk: runs that tokenize the same rows in the same way then find the first one's work (20,000 rows: 8 s, then 0.01 s).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import datasets
import numpy as np
from datasets import Dataset

from rfflow.config.paths import listing, looks_local
from rfflow.config.spec import DatasetSpec, TrainerSpec
from rfflow.config.targets import resolve_function
from rfflow.errors import ConfigError
from rfflow.worker.data.columns import check_columns, forms_of, select_columns, text_columns
from rfflow.worker.data.contents import as_text, check_filled, labels_as_booleans
from rfflow.worker.data.files import read_hub, read_path
from rfflow.worker.data.joining import Source, joined, together
from rfflow.worker.data.lines import shortened
from rfflow.worker.data.mixing import mixed
from rfflow.worker.data.parts import PartSpec, evaluation_parts, name_of, parts_of
from rfflow.worker.data.storing import store

log = logging.getLogger(__name__)


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
        names = " or ".join([name_of(spec), *([str(spec.eval_path)] if spec.eval_path else [])])
        raise ConfigError(f"The data set {names} is not UTF-8 text: {error}. Save it as UTF-8.") from error


def _load(spec: DatasetSpec, seed: int, trainer: TrainerSpec | None) -> Data:
    for key in ("max_samples", "max_eval_samples"):
        value = getattr(spec, key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ConfigError(f"dataset.{key} is {value!r}. Allowed: a whole number from 1 up.")
    parts = [_read(part, trainer) for part in parts_of(spec)]
    sets = {name: _read(part, trainer) for name, part in evaluation_parts(spec).items()}
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
    name = f"The evaluation set held out of {name_of(spec)}"
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
class _Part:
    """... as it was read."""

    spec: DatasetSpec
    title: str
    source: Source


def _read(part: PartSpec, trainer: TrainerSpec | None) -> _Part:
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
    sources = [select_columns(source, spec) for source in together(sources)]
    if spec.formatting_func is None:
        read = text_columns(trainer)
        sources = [replace(source, rows=as_text(source.rows, read, source.place)) for source in sources]
    return _Part(spec, part.title, joined(sources, name_of(spec)))


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

    read = text_columns(trainer)
    if part.spec.formatting_func is not None:
        dataset = as_text(_format(dataset, part.spec.formatting_func, place), read, place)
    check_columns(dataset, trainer, part.title)
    if not len(dataset):
        raise ConfigError(f"{part.title} has no rows to work with.")
    if "label" in dataset.column_names and read and any("label" in form for form in forms_of(trainer)):
        dataset = labels_as_booleans(dataset, part.title, place)
    check_filled(dataset, [column for column in read if column in dataset.column_names], part.title, place)
    return Source(dataset, source.name)


# --- choosing ---------------------------------------------------------------------------------------------------------


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


_FOR_YOURS = (
    " The function is the recipe's, for the columns of its own data. For rows of yours: dataset=local (in a file) or "
    "dataset=hub, which read text, prompt and completion, or messages; or a function of your own."
)


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
            hint = _FOR_YOURS if isinstance(error, KeyError) and str(name).startswith("recipes.") else ""
            raise ConfigError(
                f"{place()}: {type(error).__name__}: {error}. Columns of the row: {', '.join(row)}.{hint}"
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
