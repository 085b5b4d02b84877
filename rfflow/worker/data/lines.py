"""The lines of a text file, compressed or not."""

from __future__ import annotations

import bz2
import codecs
import gzip
import importlib
import importlib.util
import io
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rfflow.errors import ConfigError

COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
_OPENERS: Mapping[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


class Unreadable(ValueError):
    """A file is not what its name says; the message says where in it."""


def check_packing(path: Path, where: str) -> None:
    """Check that a compressed file can be unpacked here.

    Raises:
        ConfigError: naming the package that is missing.
    """
    if path.suffix.lower() == ".zst" and importlib.util.find_spec("zstandard") is None:
        raise ConfigError(
            f"{where} is {str(path)!r}, packed by zstd, which takes the package zstandard: pip install zstandard. Or "
            "unpack it first: unzstd."
        )


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a file, with their ends, and their numbers, from 1."""
    number = 0
    try:
        with _open(path) as file:
            for number, line in enumerate(file, start=1):
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                    if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                        raise Unreadable("It is UTF-16, not UTF-8 text. Save it as UTF-8.")
                yield number, line.decode()
    except UnicodeDecodeError as error:
        raise Unreadable(f"Line {number} is not UTF-8 text: {error}. Save it as UTF-8.") from error
    except (OSError, EOFError, zlib.error, lzma.LZMAError, _zstd_error()) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk's, and not of what was read
            raise
        raise Unreadable(f"It is damaged, or not packed as its name says: {error}.") from error


def _open(path: Path) -> Any:
    packing = path.suffix.lower()
    if packing == ".zst":
        zstandard = importlib.import_module("zstandard")
        return io.BufferedReader(zstandard.open(path, "rb"))
    return _OPENERS.get(packing, open)(path, "rb")


def _zstd_error() -> type[BaseException]:
    if "zstandard" not in sys.modules:
        return EOFError
    error: type[BaseException] = importlib.import_module("zstandard").ZstdError
    return error


def shortened(text: str, length: int = 60) -> str:
    """Return the beginning of a text."""
    text = text.strip()
    return text if len(text) <= length else text[:length] + "..."
