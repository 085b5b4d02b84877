"""Read rows from files, folders and the hub, and keep them on disk where `datasets` finds what it made of them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from datasets.exceptions import DatasetsError

from rfflow.errors import ConfigError
from rfflow.training.sources import cache_folder, existing_path, listing

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
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")


def read_path(location: str, split: str, where: str, split_key: str = "split", sample_by: str = "paragraph") -> Dataset:
    path = existing_path(location, where)
    if path.is_dir():
        return _read_folder(path, split, where, split_key, sample_by)
    suffixes = [suffix for suffix in path.suffixes if suffix not in COMPRESSED]
    builder = BUILDERS.get(suffixes[-1]) if suffixes else None
    if builder is None:
        raise ConfigError(f"{where} is {location!r}. Readable files end in {', '.join(BUILDERS)} (or are packed: .gz).")
    if path.stat().st_size == 0:
        raise ConfigError(f"{where} is {location!r}: the file is empty.")
    options = {".tsv": {"sep": "\t"}, ".txt": {"sample_by": sample_by}}.get(suffixes[-1], {})
    with _refusals(f"{where} is {location!r}", path):
        return load_dataset(builder, data_files=str(path), split="train", **options)


def _read_folder(folder: Path, split: str, where: str, split_key: str, sample_by: str) -> Dataset:
    names = sorted(entry.name for entry in folder.iterdir())
    with _refusals(f"{where} is {str(folder)!r}", folder):
        if "dataset_dict.json" in names or "state.json" in names:
            saved = load_from_disk(str(folder))
            if isinstance(saved, DatasetDict):
                if split not in saved:
                    raise ConfigError(
                        f"dataset.{split_key} is {split!r}, which {folder} does not have. Splits: {', '.join(saved)}."
                    )
                saved = saved[split]
            # What map makes of rows is kept beside them: not in the user's folder.
            return store(saved.with_format("arrow"), _same, batched=True)
        if not any(suffix in BUILDERS for name in names for suffix in Path(name).suffixes):
            raise ConfigError(
                f"{where} is {str(folder)!r}, a folder that `datasets` did not save and without files to read "
                f"({', '.join(BUILDERS)}). In it: {listing(names)}."
            )
        texts = _only_texts(folder)
        if not texts:
            return load_dataset(str(folder), split=split)
        if split != "train":
            raise ConfigError(
                f"dataset.{split_key} is {split!r}, but {folder} holds plain text, which has no splits. Give "
                "dataset.eval_path or dataset.eval_size."
            )
        # Named one by one: `datasets` would take what is called test.txt for a split of its own, and not train on it.
        return load_dataset("text", data_files=texts, split="train", sample_by=sample_by)


def _only_texts(folder: Path) -> list[str]:
    """Return the .txt files of a folder and its folders, unless files of another kind stand beside them."""
    files = sorted(path for path in folder.rglob("[!.]*") if path.is_file())
    readable = [path for path in files if set(path.suffixes) & set(BUILDERS)]
    return [str(path) for path in readable] if all(path.suffix == ".txt" for path in readable) else []


def read_hub(name: str, config: str | None, split: str) -> Dataset:
    with _refusals(f"dataset.name is {name!r} (config {config!r}, split {split!r})", None):
        return load_dataset(name, config, split=split)


@contextlib.contextmanager
def _refusals(what: str, path: Path | None) -> Iterator[None]:
    """Turn what `datasets` raises into one sentence, with the line where it is a file that cannot be parsed."""
    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # the sentence below says it better
    try:
        yield
    except (DatasetsError, OSError, ValueError, RuntimeError, ImportError, TypeError) as error:
        cause: BaseException = error
        while isinstance(cause, DatasetsError) and cause.__cause__ is not None:
            cause = cause.__cause__
        reason = _bad_line(path) or f"{type(cause).__name__}: {' '.join(str(cause).split())}"
        if "corresponds to no data" in reason:
            reason = "There are no rows in it."
        if isinstance(cause, UnicodeDecodeError):
            reason += ". Save it as UTF-8."
        hint = "" if path else " Check the name and the network, or give a local file as dataset.path."
        raise ConfigError(f"{what}: cannot read it. {reason}{hint}") from error
    finally:
        datasets.logging.set_verbosity(verbosity)


def _bad_line(path: Path | None) -> str | None:
    """Find the first line of a JSONL file that is not a JSON object."""
    if path is None or path.suffix not in (".jsonl", ".ndjson", ".json") or not path.is_file():
        return None
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            if number == 1 and line.lstrip().startswith("[") and path.suffix == ".json":
                return None  # one array, not lines
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                return f"Line {number} is not JSON ({error.msg}, column {error.colno}): {shortened(line)}"
            if not isinstance(row, dict):
                return f"Line {number} is not a JSON object with columns: {shortened(line)}"
    return None


def shortened(text: str, length: int = 60) -> str:
    text = text.strip()
    return text if len(text) <= length else text[:length] + "..."


def _same(rows: Any) -> Any:
    return rows


def store(dataset: Dataset, function: Callable[..., Any], **kwargs: Any) -> Dataset:
    """Map a function over the rows and keep the result in our cache under the name of its content.

    `datasets` would name it after the function, whose code it does not see when it comes from a module: an edited
    function would find the rows of the old one.

    Args:
        dataset: the rows.
        function: what to make of each.
        kwargs: for ``Dataset.map``.
    """
    folder = cache_folder("data")
    handle, made = tempfile.mkstemp(dir=folder, suffix=".partial")
    os.close(handle)
    try:
        mapped = dataset.map(
            function, cache_file_name=made, load_from_cache_file=False, new_fingerprint="unnamed", **kwargs
        )
        if not len(mapped):
            return mapped
        with Path(made).open("rb") as content:
            stored = folder / f"{hashlib.file_digest(content, 'sha256').hexdigest()[:32]}.arrow"
        Path(made).replace(stored)
    finally:
        Path(made).unlink(missing_ok=True)
    # The fingerprint is how `datasets` finds what was made of these rows: two data sets must never share one.
    opened = Dataset.from_file(str(stored))
    return Dataset(opened.data, info=opened.info, fingerprint=stored.stem)
