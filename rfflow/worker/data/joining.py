"""Rows and where they stand, and how those of several files become one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, Features, Value

from rfflow.errors import ConfigError
from rfflow.worker.data.lines import COMPRESSED
from rfflow.worker.data.tables import line_of, read_json

BUILDERS = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
}


@dataclass(frozen=True)
class Source:
    """Rows, and where each of them stands."""

    rows: Dataset
    name: str
    """What the user calls them."""
    files: tuple[tuple[Path, int], ...] = ()
    """Their files, in order, with the number of rows of each; empty where they are not known."""

    def place(self, row: int) -> str:
        """Say where a row stands: its number, its file where there are several, and its line."""
        for path, count in self.files:
            if row < count:
                line = line_of(path, row)
                inside = f" of {path}" if len(self.files) > 1 else ""
                return f"row {row} (from 0){inside}" + (f", line {line}" if line else "")
            row -= count
        return f"row {row} (from 0)"


def builder_of(path: Path) -> str | None:
    """Return how `datasets` calls what reads files of that name."""
    kinds = [suffix for suffix in map(str.lower, path.suffixes) if suffix not in COMPRESSED]
    return BUILDERS.get(kinds[-1]) if kinds else None


def joined(sources: Sequence[Source], name: str) -> Source:
    """Return the rows of several sources, one after the other.

    Raises:
        ConfigError: if they do not fit together.
    """
    check_alike(sources)
    return one(sources, name)


def check_alike(sources: Sequence[Source]) -> None:
    """Check that the rows of several sources have the same columns, of the same types.

    Raises:
        ConfigError: naming the first two that differ, and in what.
    """
    first, *others = sources
    for other in others:
        mine, theirs = first.rows.features, other.rows.features
        alone = {first.name: mine.keys() - theirs.keys(), other.name: theirs.keys() - mine.keys()}
        if any(alone.values()):
            only = "; ".join(f"only {name} has {', '.join(sorted(own))}" for name, own in alone.items() if own)
            raise ConfigError(
                f"{first.name} and {other.name} differ in their columns: {only}. Keep those that all have and give "
                "them one name (dataset.columns), or make them alike, each by its own columns or formatting_func "
                "(dataset=mixture)."
            )
        for column, feature in mine.items():
            try:
                datasets.features.features._check_if_features_can_be_aligned(
                    [Features({column: feature}), Features({column: theirs[column]})]
                )
            except ValueError as error:
                raise ConfigError(
                    f"{first.name} and {other.name} differ in the column {column!r}: {_said(feature)} there, "
                    f"{_said(theirs[column])} here. Make them alike with a formatting_func."
                ) from error


def together(sources: Sequence[Source]) -> list[Source]:
    """Return sources of JSON with types that hold for all: messages of one may have keys that those of others lack."""
    names = [source.rows.column_names for source in sources]
    features = [source.rows.features for source in sources]
    nested = any(
        each[column] != features[0][column] and not any(isinstance(own[column], Value) for own in (each, features[0]))
        for each in features[1:]
        for column in each.keys() & features[0].keys()
    )
    files = [file for source in sources for file in source.files]
    if (
        not nested
        or not all(source.files for source in sources)
        or any(builder_of(path) != "json" for path, _ in files)
    ):
        return list(sources)
    whole, first, made = read_json(*(path for path, _ in files)), 0, []
    for source, columns in zip(sources, names, strict=True):
        rows = whole.select(range(first, first + len(source.rows))).select_columns(columns)
        first += len(source.rows)
        made.append(replace(source, rows=rows))
    return made


def one(sources: Sequence[Source], name: str) -> Source:
    """Return the rows of sources that are alike, one after the other."""
    if len(sources) == 1:
        return replace(sources[0], name=name)
    files = tuple(file for source in sources for file in source.files)
    known = all(source.files or not len(source.rows) for source in sources)
    return Source(datasets.concatenate_datasets([s.rows for s in sources]), name, files if known else ())


def _said(feature: Any) -> str:
    return str(getattr(feature, "dtype", None) or feature)
