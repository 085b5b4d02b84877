"""Which program and which versions an experiment belongs to."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "numpy", "hydra-core", "rfflow")


_from_python: ContextVar[bool] = ContextVar("rfflow_from_python", default=False)


@contextmanager
def started_from_python() -> Iterator[None]:
    """Say that what is started inside belongs to no command line."""
    token = _from_python.set(True)
    try:
        yield
    finally:
        _from_python.reset(token)


def program() -> tuple[str, ...]:
    """Return how Python was told to run this program: ``-m`` and a module, a file, or what ``__main__.py`` lies in.

    Of what was typed (in a notebook, behind ``-c``, into the standard input) there is nothing to return.
    """
    main = sys.modules["__main__"]
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if _from_python.get():
        return ()
    if spec is not None and spec.name == "__main__":  # in a folder or an archive
        return () if file is None else (str(Path(file).parent.absolute()),)
    if spec is not None:
        return ("-m", spec.name.removesuffix(".__main__"))
    return () if file is None else (str(Path(file).absolute()),)


def versions() -> dict[str, str]:
    """Return the versions of what decides about the bits."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
