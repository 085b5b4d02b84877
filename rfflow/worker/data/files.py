"""Read rows from files, folders and the hub: what is text there is text here."""

from __future__ import annotations

import contextlib
import glob
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
from datasets import (
    Dataset,
    DatasetDict,
    Features,
    Value,
    load_dataset,
    load_dataset_builder,
    load_from_disk,
)
from datasets.exceptions import DatasetsError

from rfflow.config.paths import PACKAGE, existing_path, listing, what_is_there
from rfflow.errors import ConfigError
from rfflow.evals.beir import is_beir, read_queries
from rfflow.worker.data.joining import BUILDERS, Source, builder_of, joined, one, together
from rfflow.worker.data.lines import COMPRESSED, Unreadable, check_packing
from rfflow.worker.data.storing import store
from rfflow.worker.data.tables import read_csv, read_json

log = logging.getLogger(__name__)


# --- files ------------------------------------------------------------------------------------------------------------


def read_path(
    location: str, split: str, where: str, split_key: str = "split", sample_by: str = "paragraph"
) -> list[Source]:
    """Read a file, a folder, or all files that match a pattern such as ``data/*.jsonl``, in the order of their names.

    Raises:
        ConfigError: naming what is not there, or cannot be read.
    """
    return [
        _read_folder(path, split, where, split_key, sample_by)
        if path.is_dir()
        else _read_file(path, where, name, sample_by)
        for path, name in _matches(location, where)
    ]


def _matches(location: str, where: str) -> list[tuple[Path, str]]:
    """Return what a path or a pattern names, each with how it would be written by itself."""
    path = Path(location).expanduser()
    if location.startswith(PACKAGE) or not glob.has_magic(location) or path.exists():
        return [(existing_path(location, where), location)]
    found = sorted(glob.glob(str(path), recursive=True))
    if not found:
        raise ConfigError(f"{where} is {location!r}: nothing matches the pattern.{what_is_there(path)}")
    return [(Path(name), name) for name in found]


def _read_file(path: Path, where: str, name: str, sample_by: str) -> Source:
    what = f"{where} is {name!r}"
    builder = builder_of(path)
    if builder is None:
        raise ConfigError(
            f"{what}. Readable files end in {', '.join(BUILDERS)} (or are packed: {', '.join(COMPRESSED)})."
        )
    if path.stat().st_size == 0:
        raise ConfigError(f"{what}: the file is empty.")
    with _refusals(what):
        rows = _read_rows(path, builder, where, sample_by)
    return Source(rows, name, ((path, len(rows)),))


def _read_rows(path: Path, builder: str, where: str, sample_by: str, separator: str | None = None) -> Dataset:
    check_packing(path, where)
    if builder == "csv":
        return read_csv(path, "\t" if ".tsv" in map(str.lower, path.suffixes) else separator)
    if builder == "json":
        return read_json(path)
    # A mark of the encoding at the beginning of a file is not text.
    options = {"sample_by": sample_by, "encoding": "utf-8-sig"} if builder == "text" else {}
    return load_dataset(builder, data_files=str(path), split="train", **options)


# --- folders ----------------------------------------------------------------------------------------------------------


def _read_folder(folder: Path, split: str, where: str, split_key: str, sample_by: str) -> Source:
    if is_beir(folder):
        return _read_beir(folder, split, where)
    names = sorted(entry.name for entry in folder.iterdir())
    with _refusals(f"{where} is {str(folder)!r}"):
        if "dataset_dict.json" in names or "state.json" in names:
            saved = load_from_disk(str(folder))
            if isinstance(saved, DatasetDict):
                saved = saved[_split_of(saved, split, folder, split_key)]
            # What map makes of rows is kept beside them: not in the user's folder.
            return Source(store(saved.with_format("arrow"), _same, batched=True), str(folder))
        if not any(builder_of(Path(name)) or (folder / name).is_dir() for name in names):
            raise ConfigError(
                f"{where} is {str(folder)!r}, a folder that `datasets` did not save and without files to read "
                f"({', '.join(BUILDERS)}). In it: {listing(names)}."
            )
        texts = _only_texts(folder)
        if not texts:
            return _read_splits(folder, split, where, split_key, sample_by)
        if split != "train":
            raise ConfigError(
                f"dataset.{split_key} is {split!r}, but {folder} holds plain text, which has no splits. Give "
                "dataset.eval_path or dataset.eval_size."
            )
        # Named one by one: `datasets` would take what is called test.txt for a split of its own, and not train on it.
        return one([_read_file(Path(text), where, text, sample_by) for text in texts], str(folder))


def _read_beir(folder: Path, split: str, where: str) -> Source:
    rows = list(read_queries(folder, split, where))
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    if not any(columns["references"]):  # a column of empty lists has no type
        del columns["references"]
    return Source(store(Dataset.from_dict(columns), _same, batched=True), str(folder))


def _read_splits(folder: Path, split: str, where: str, split_key: str, sample_by: str) -> Source:
    """Read a split of a folder of files, which `datasets` tells by their names or by the folder's README."""
    config = load_dataset_builder(str(folder)).config
    files = {str(name): [Path(path) for path in paths] for name, paths in config.data_files.items()}
    wanted = [_split_of(files, part.partition("[")[0], folder, split_key) for part in split.split("+")]
    read = {path.resolve() for paths in files.values() for path in paths}
    aside = [
        str(path.relative_to(folder))
        for path in sorted(folder.rglob("[!.]*"))
        if builder_of(path) and path.is_file() and path.resolve() not in read
    ]
    if aside:
        log.warning("%s: of the folder %s these files are not read: %s", where, folder, listing(aside))
    if not {builder_of(path) for name in wanted for path in files[name]} <= {"csv", "json"}:
        return Source(load_dataset(str(folder), split=split), str(folder))
    separator = config.sep if getattr(config, "sep", ",") != "," else None
    sources: dict[str, Source] = {}
    for name in wanted:
        made = []
        for path in files[name]:
            with _refusals(f"{where} is {str(folder)!r}, file {path.relative_to(folder.resolve())}"):
                rows = _read_rows(path, str(builder_of(path)), where, sample_by, separator)
            made.append(Source(rows, str(path), ((path, len(rows)),)))
        sources[name] = joined(together(made), str(folder))
    if wanted == [split]:
        return sources[split]
    instruction = datasets.ReadInstruction.from_spec(split)  # such as train[:10%] or train+validation
    parts = instruction.to_absolute({name: len(source.rows) for name, source in sources.items()})
    return one([_part(sources[part.splitname], part.from_, part.to) for part in parts], str(folder))


def _part(source: Source, first: int | None, end: int | None) -> Source:
    rows = source.rows.select(range(first or 0, len(source.rows) if end is None else end))
    return Source(rows, source.name)


def _split_of(splits: Any, split: str, folder: Path, split_key: str) -> str:
    if split not in splits:
        raise ConfigError(
            f"dataset.{split_key} is {split!r}, which {folder} does not have. Splits: {', '.join(splits)}."
        )
    return split


def _only_texts(folder: Path) -> list[str]:
    """Return the .txt files of a folder and its folders, unless files of another kind stand beside them."""
    files = sorted(path for path in folder.rglob("[!.]*") if path.is_file())
    readable = [path for path in files if set(path.suffixes) & set(BUILDERS)]
    return [str(path) for path in readable] if all(path.suffix == ".txt" for path in readable) else []


def _same(rows: Any) -> Any:
    return rows


# --- the hub ----------------------------------------------------------------------------------------------------------


def read_hub(name: str, config: str | None, split: str) -> Source:
    """Read a split of a data set of the hub."""
    with _refusals(f"dataset.name is {name!r} (config {config!r}, split {split!r})", hub=True):
        rows = load_dataset(name, config, split=split)
        kind = rows.info.builder_name
        if kind == "csv" and not _is_text(rows):
            # What pandas took for a number or for nothing; read again as text.
            features = Features(dict.fromkeys(rows.column_names, Value("string")))
            rows = load_dataset(name, config, split=split, features=features, na_filter=False)
        dates = [column for column, feature in rows.features.items() if "timestamp" in str(feature)]
        if kind == "json" and dates:
            raise ConfigError(
                f"dataset.name is {name!r}: `datasets` takes the text in {', '.join(dates)} for times. Download the "
                "file and give it as dataset.path, which reads text as text."
            )
    return Source(rows, name)


def _is_text(rows: Dataset) -> bool:
    return all(
        feature == Value("string") and not rows.data.column(column).null_count
        for column, feature in rows.features.items()
    )


@contextlib.contextmanager
def _refusals(what: str, hub: bool = False) -> Iterator[None]:
    """Turn what `datasets` raises into one sentence."""
    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # the sentence below says it better
    try:
        yield
    except (DatasetsError, OSError, ValueError, RuntimeError, ImportError, TypeError) as error:
        cause: BaseException = error
        while isinstance(cause, DatasetsError) and cause.__cause__ is not None:
            cause = cause.__cause__
        reason = " ".join(str(cause).split())
        if not isinstance(cause, Unreadable):
            reason = f"{type(cause).__name__}: {reason}"
        if "corresponds to no data" in reason:
            reason = "There are no rows in it."
        if isinstance(cause, UnicodeDecodeError):
            reason += ". Save it as UTF-8."
        hint = " Check the name and the network, or give a local file as dataset.path." if hub else ""
        raise ConfigError(f"{what}: cannot read it. {reason}{hint}") from error
    finally:
        datasets.logging.set_verbosity(verbosity)
