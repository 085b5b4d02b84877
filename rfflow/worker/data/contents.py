"""What stands in the columns that trainers read: text as text, labels as labels, and nothing that stops a trainer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, Json, Value

from rfflow.errors import ConfigError
from rfflow.worker.data.lines import shortened
from rfflow.worker.data.storing import store

log = logging.getLogger(__name__)

Place = Callable[[int], str]
"""Says where a row stands, by its number."""

_LABELS = {"true": True, "1": True, "false": False, "0": False}


def as_text(dataset: Dataset, read: Sequence[str], place: Place) -> Dataset:
    """Return the rows with whole numbers of JSON and Parquet as text, where text is read: an answer may be 42.

    Raises:
        ConfigError: for what is neither text nor a conversation, since it could be written in more than one way.
    """
    for column in read:
        feature = dataset.features.get(column)
        if isinstance(feature, Json):
            _check_conversations(dataset, column, place)
        if not isinstance(feature, Value) or feature.dtype in ("string", "large_string", "string_view", "null"):
            continue
        if not feature.dtype.startswith(("int", "uint")):
            raise ConfigError(
                f"The column {column!r} holds {feature.dtype}, not text. Make it text with a dataset.formatting_func."
            )
        log.info("The column %r holds numbers; they are read as text", column)
        dataset = dataset.cast_column(column, Value("string"))
    return dataset


def _check_conversations(dataset: Dataset, column: str, place: Place) -> None:
    """Check that a column without one type holds conversations, whose messages may have different keys."""
    first: type | None = None
    for index, row in enumerate(dataset.select_columns([column])):
        kind = type(row[column])
        if kind is type(None) or (kind is list and first in (None, list)):
            first = first or (kind if kind is list else None)
        elif first is None:
            first = kind
        elif kind is not first:
            raise ConfigError(
                f"The column {column!r} holds {_said(first)} in some rows and something else in others: {place(index)} "
                f"has {shortened(repr(row[column]))}, {_said(kind)}. Make it text with a dataset.formatting_func."
            )
    if first is not list:
        raise ConfigError(f"The column {column!r} holds neither text nor messages. Give a dataset.formatting_func.")


def _said(kind: type) -> str:
    return "text" if kind is str else f"a {kind.__name__}"


def labels_as_booleans(dataset: Dataset, title: str, place: Place) -> Dataset:
    """Return the rows with true and false as such, which a CSV file has as text: there "False" would count as true.

    Raises:
        ConfigError: for text that is neither.
    """
    if dataset.features["label"] != Value("string"):
        return dataset
    for index, value in enumerate(dataset.select_columns(["label"])):
        if str(value["label"]).lower() not in _LABELS:
            raise ConfigError(
                f"{title}: the column 'label' holds {value['label']!r} in {place(index)}. Allowed: true for answers "
                "like those wanted, false for others."
            )
    features = Features({**dataset.features, "label": Value("bool")})
    return store(dataset, lambda row: {"label": _LABELS[row["label"].lower()]}, features=features)


def check_filled(dataset: Dataset, read: Sequence[str], title: str, place: Place) -> None:
    """Check that every row has something in the columns that are read; empty text is something, and is only said.

    Raises:
        ConfigError: for rows that have nothing, at which TRL would stop in the midst of tokenizing.
    """
    for column in read:
        missing = list(_where(dataset, column, _is_missing))
        if missing:
            raise ConfigError(
                f"{title}: {len(missing)} of {len(dataset)} rows have nothing in {column!r}, first "
                f"{place(missing[0])}. "
                "TRL cannot train on them, nor does it leave them out. Fill them in or take them out of the "
                "data; empty text is allowed."
            )
        if column == "prompt":
            continue  # completions alone are a kind of data of their own
        blank = list(_where(dataset, column, _is_blank))
        if blank:
            log.warning(
                "%s: %d of %d rows have empty text in %r, first %s; they are trained on, as TRL does",
                title,
                len(blank),
                len(dataset),
                column,
                place(blank[0]),
            )


def _where(dataset: Dataset, column: str, holds: Callable[[pa.ChunkedArray], Any]) -> Iterator[int]:
    first = 0
    for table in dataset.select_columns([column]).with_format("arrow").iter(1000):
        found = holds(table[column])
        if found is not None:
            yield from (first + index for index, is_so in enumerate(found.to_pylist()) if is_so)
        first += len(table)


def _is_missing(values: pa.ChunkedArray) -> Any:
    if pa.types.is_list(values.type):
        return pc.fill_null(pc.equal(pc.list_value_length(values), 0), True)
    return values.is_null() if values.null_count else None


def _is_blank(values: pa.ChunkedArray) -> Any:
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        return None
    return pc.equal(pc.utf8_trim_whitespace(values), "")
