"""Read CSV and JSON as they stand in the file: text stays text, whatever it looks like.

`datasets` reads CSV by pandas, for which 00704 is a number and NA is nothing, and JSON by pyarrow, for which
"1969-07-20" is a time. Who trains on text wants neither.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features, Json, List, Value
from datasets.table import table_cast

from rfflow.worker.data.lines import COMPRESSED, Unreadable, lines_of, shortened
from rfflow.worker.data.storing import store_files

_SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab"}
_NO_ROWS = "There are no rows in it."
_BATCH = 1000  # rows, as `datasets` writes them


def read_csv(path: Path, separator: str | None = None) -> Dataset:
    """Read a CSV file with a header. Every column is text; an empty cell is empty text.

    Args:
        path: the file, compressed or not.
        separator: what parts the columns; by default a comma, or the semicolon or tab of a header without commas.

    Raises:
        Unreadable: naming the line.
    """
    return store_files([path], f"csv {separator!r}", functools.partial(_write_csv, path, separator))


def read_json(*paths: Path) -> Dataset:
    """Read JSON files: an object a line, an array of objects or texts, or one object of columns.

    Raises:
        Unreadable: naming the line.
    """
    return store_files(paths, "json", functools.partial(_write_json, paths))


def line_of(path: Path, row: int) -> int | None:
    """Return the line, from 1, at which a row (from 0) of a CSV or JSONL file begins; ``None`` of other files."""
    kind = next((suffix for suffix in reversed(path.suffixes) if suffix not in COMPRESSED), "").lower()
    found: Iterator[int] = iter(())
    if kind in (".csv", ".tsv"):
        found = (line for line, _ in itertools.islice(_csv_rows(path, "\t" if kind == ".tsv" else None), 1, None))
    elif kind in (".jsonl", ".ndjson"):
        found = (line for line, text in lines_of(path) if text.strip())
    with contextlib.suppress(Unreadable, OSError):
        return next(itertools.islice(found, row, None), None)
    return None


# --- CSV --------------------------------------------------------------------------------------------------------------


def _write_csv(path: Path, separator: str | None, made: Path) -> None:
    rows = _csv_rows(path, separator)
    _, names = next(rows, (0, []))
    first = next(rows, None)
    if first is None:
        raise Unreadable(_NO_ROWS)
    rows = itertools.chain([first], rows)
    schema = pa.schema([(name, pa.string()) for name in names])
    with pa.OSFile(str(made), "wb") as file, pa.ipc.new_stream(file, schema) as stream:
        while batch := [row for _, row in itertools.islice(rows, _BATCH)]:
            stream.write_batch(pa.record_batch([pa.array(column) for column in zip(*batch, strict=True)], schema))


def _csv_rows(path: Path, separator: str | None) -> Iterator[tuple[int, list[str]]]:
    """Yield the header and the rows, each with the line at which it begins."""
    lines = (text for _, text in lines_of(path))
    first = next(lines, "")
    separator = separator or _separator(first)
    limit = csv.field_size_limit(sys.maxsize)  # a cell may hold a whole document
    try:
        reader = csv.reader(itertools.chain([first], lines), delimiter=separator, strict=True)
        names: list[str] = []
        begins = 1
        while True:
            try:
                row = next(reader, None)
            except csv.Error as error:
                raise Unreadable(f"Line {begins} is not CSV ({error}).") from error
            if row is None:
                return
            if not names and row:
                names = _header(row)
                yield begins, names
            elif row:
                if len(row) != len(names):
                    raise Unreadable(
                        f"Line {begins} has {len(row)} {'cell' if len(row) == 1 else 'cells'}, the header has "
                        f"{len(names)}: {', '.join(names)}. Text with a {_SEPARATORS.get(separator, separator)} in it "
                        "stands in quotes."
                    )
                yield begins, row
            begins = reader.line_num + 1
    finally:
        csv.field_size_limit(limit)


def _separator(header: str) -> str:
    if "," in header:
        return ","
    return next((mark for mark in (";", "\t") if mark in header), ",")


def _header(row: list[str]) -> list[str]:
    names = [name or f"Unnamed: {index}" for index, name in enumerate(row)]  # as pandas calls its own index
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise Unreadable(f"The header has two columns {twice!r}: {', '.join(names)}.")
    return names


# --- JSON -------------------------------------------------------------------------------------------------------------


def _write_json(paths: Sequence[Path], made: Path) -> None:
    """Write the rows with types that hold for all of them, which takes one look at all before."""
    shapes: dict[str, Any] = {}
    for _, row in itertools.chain.from_iterable(map(_json_rows, paths)):
        for name, value in row.items():
            shapes[name] = _widened(shapes.get(name), value)
    if not shapes:
        raise Unreadable(_NO_ROWS)
    storage = pa.schema([(name, _storage(shape)) for name, shape in shapes.items()])
    features = Features({name: _feature(shape) for name, shape in shapes.items()})
    mixed = {name for name, shape in shapes.items() if _has_mixed(shape)}
    rows = itertools.chain.from_iterable(map(_json_rows, paths))
    with pa.OSFile(str(made), "wb") as file, pa.ipc.new_stream(file, features.arrow_schema) as stream:
        while batch := list(itertools.islice(rows, _BATCH)):
            columns = []
            for field in storage:
                values = [row.get(field.name) for _, row in batch]
                if field.name in mixed:
                    values = [_encoded(shapes[field.name], value) for value in values]
                columns.append(_array(values, field, [line for line, _ in batch]))
            table = pa.Table.from_arrays(columns, schema=storage)
            stream.write_table(table_cast(table, features.arrow_schema) if mixed else table)


_MIXED = object()
"""The shape of what is text here and a list there, or objects with other keys: `datasets` keeps it as JSON."""


def _widened(shape: Any, value: Any) -> Any:
    """Return the shape that fits a value, too.

    A shape is ``None`` before any value, a type of Python's, a list with the shape of its items, a dict with those of
    its values, or ``_MIXED``. Where `datasets` would keep JSON, so do we.
    """
    if value is None or shape is _MIXED:
        return shape
    if isinstance(value, dict):
        if not value or not (shape is None or (isinstance(shape, dict) and shape.keys() == value.keys())):
            return _MIXED
        return {key: _widened(shape and shape[key], inner) for key, inner in value.items()}
    if isinstance(value, list):
        if not (shape is None or isinstance(shape, list)):
            return _MIXED
        item = shape[0] if shape else None
        for inner in value:
            item = _widened(item, inner)
        return [item]
    kind = type(value)
    if shape is None or shape is kind:
        return kind
    return float if {shape, kind} == {int, float} else _MIXED


_STORAGE = {None: pa.null(), str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}


def _storage(shape: Any) -> pa.DataType:
    """Return the type in which `datasets` stores a shape, JSON still as text."""
    if isinstance(shape, dict):
        return pa.struct([(key, _storage(inner)) for key, inner in shape.items()])
    if isinstance(shape, list):
        return pa.list_(_storage(shape[0]))
    return pa.string() if shape is _MIXED else _STORAGE[shape]


def _feature(shape: Any) -> Any:
    if isinstance(shape, dict):
        return {key: _feature(inner) for key, inner in shape.items()}
    if isinstance(shape, list):
        return List(_feature(shape[0]))
    return Json() if shape is _MIXED else Value(str(_STORAGE[shape]).replace("double", "float64"))


def _has_mixed(shape: Any) -> bool:
    inner = shape.values() if isinstance(shape, dict) else shape if isinstance(shape, list) else ()
    return shape is _MIXED or any(map(_has_mixed, inner))


def _encoded(shape: Any, value: Any) -> Any:
    """Return a value with JSON where its shape is mixed. `datasets` itself would take the text "704" for JSON."""
    if value is None:
        return None
    if shape is _MIXED:
        return json.dumps(value, ensure_ascii=False)
    if isinstance(shape, dict):
        return {key: _encoded(shape[key], inner) for key, inner in value.items()}
    if isinstance(shape, list):
        return [_encoded(shape[0], inner) for inner in value]
    return value


def _array(values: list[Any], field: pa.Field, lines: Sequence[int]) -> pa.Array:
    try:
        return pa.array(values, field.type)
    except (OverflowError, UnicodeEncodeError, pa.ArrowInvalid) as error:  # a number or a letter that Arrow cannot hold
        for line, value in zip(lines, values, strict=True):
            try:
                pa.array([value], field.type)
            except type(error):
                place = f"Line {line}" if line else "An entry of the array"
                raise Unreadable(f"{place}, column {field.name!r}: {error}. Write it as text.") from error
        raise


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows, each with its line; 0 where it is not one a line."""
    lines = ((number, text) for number, text in lines_of(path) if text.strip())
    begun, first = next(lines, (0, ""))
    if not first:
        return
    if first.lstrip().startswith("[") or not _is_json(first):
        yield from ((0, row) for row in _whole_json(path))
        return
    for number, text in itertools.chain([(begun, first)], lines):
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            said = f"Line {number} is not JSON ({error.msg}, column {error.colno}): {shortened(text)}"
            raise Unreadable(said) from error
        if not isinstance(row, dict):
            raise Unreadable(f"Line {number} is not a JSON object with columns: {shortened(text)}")
        yield number, row


def _is_json(text: str) -> bool:
    with contextlib.suppress(json.JSONDecodeError):
        json.loads(text)
        return True
    return False


def _whole_json(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of what is JSON only as a whole."""
    text = "".join(line for _, line in lines_of(path))
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        line = text.splitlines()[error.lineno - 1 : error.lineno] or [""]
        said = f"Line {error.lineno} is not JSON ({error.msg}, column {error.colno}): {shortened(line[0])}"
        raise Unreadable(said) from error
    if isinstance(content, dict):
        lengths = {len(column) if isinstance(column, list) else -1 for column in content.values()}
        if len(lengths) != 1 or -1 in lengths:
            raise Unreadable(
                f"It is one object with {', '.join(content)}. Allowed: an object a line, an array of objects, or an "
                "object of columns, each an array and all of one length."
            )
        content = [dict(zip(content, row, strict=True)) for row in zip(*content.values(), strict=True)]
    for index, row in enumerate(content):
        if not isinstance(row, dict | str):
            raise Unreadable(
                f"Entry {index} (from 0) of the array is not an object with columns: {shortened(repr(row))}"
            )
        yield row if isinstance(row, dict) else {"text": row}
