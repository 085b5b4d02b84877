"""Keep rows on disk under the name of their content, where `datasets` finds what it made of them before."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from rfflow.config.paths import cache_folder


def store(dataset: Dataset, function: Callable[..., Any], **kwargs: Any) -> Dataset:
    """Map a function over the rows and keep the result in our cache under the name of its content.

    `datasets` would name it after the function, whose code it does not see when it comes from a module: an edited
    function would find the rows of the old one.

    Args:
        dataset: the rows.
        function: what to make of each.
        kwargs: for ``Dataset.map``.
    """
    made = _new_file()
    try:
        mapped = dataset.map(
            function, cache_file_name=str(made), load_from_cache_file=False, new_fingerprint="unnamed", **kwargs
        )
        return _adopt(made) if len(mapped) else mapped
    finally:
        made.unlink(missing_ok=True)


def store_files(files: Sequence[Path], reading: str, write: Callable[[Path], None]) -> Dataset:
    """Return the rows of files as they were made of them before, or else make them.

    Args:
        files: the files; one that has changed since is read again.
        reading: how it is read, as far as that may differ.
        write: makes an Arrow stream of it.
    """
    seen = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    key = hashlib.sha256(repr((seen, reading)).encode()).hexdigest()
    note = cache_folder("data") / f"{key[:32]}.of"
    if note.exists():
        stored = note.with_name(note.read_text())
        if stored.is_file():
            return _open(stored)
    made = _new_file()
    try:
        write(made)
        rows = _adopt(made)
        made.write_text(Path(rows.cache_files[0]["filename"]).name)
        made.replace(note)
        return rows
    finally:
        made.unlink(missing_ok=True)


def _new_file() -> Path:
    handle, name = tempfile.mkstemp(dir=cache_folder("data"), suffix=".partial")
    os.close(handle)
    return Path(name)


def _adopt(made: Path) -> Dataset:
    with made.open("rb") as content:
        stored = made.with_name(f"{hashlib.file_digest(content, 'sha256').hexdigest()[:32]}.arrow")
    made.replace(stored)
    return _open(stored)


def _open(stored: Path) -> Dataset:
    # The fingerprint is how `datasets` finds what was made of these rows: two data sets must never share one.
    opened = Dataset.from_file(str(stored))
    return Dataset(opened.data, info=opened.info, fingerprint=stored.stem)
