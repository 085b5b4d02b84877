"""The house: imports run downwards only, and what needs torch stands where one looks for it."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
LAYERS = (
    "__main__",
    "launch",
    "results",
    "search",
    "dashboard",
    "engine",
    "slots",
    "worker",
    "policies",
    "loggers",
    "tracking",
    "checkpointing",
    "control",
    "scheduling",
    "evals",
    "runs",
    "config",
)
"""From top to bottom; the modules at the root, less ``__main__``, may be imported from everywhere."""
HEAVY = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "lightning_fabric", "tensorboard")
MAY_BE_HEAVY = ("engine", "slots", "worker", "loggers")
"""The engine and its local slot have a worker in their own process, and TensorBoard's logger is Lightning's."""


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted((ROOT / "rfflow").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if "_plugins" not in parts:
            yield ".".join(part for part in parts if part != "__init__"), path


MODULES = dict(modules())


PLUGIN = ("rfflow.dashboard.entry", "rfflow.dashboard.plugin")
"""What TensorBoard imports, and what imports nothing heavy besides it."""


def layer(module: str) -> str | None:
    """Return the layer of a module, None for one at the root."""
    name = (*module.split("."), "")[1]
    return name if name in LAYERS else None


@functools.cache
def imports(module: str) -> frozenset[str]:
    """Return what a module imports when it is imported, types left out: modules of ours, and others."""
    found = set()
    for node in ast.parse(MODULES[module].read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in full}
    return frozenset(found)


def test_imports_run_downwards() -> None:
    ups = [
        f"{module} imports {found}"
        for module in MODULES
        for found in imports(module)
        if (above := layer(module)) and (below := layer(found)) and LAYERS.index(below) < LAYERS.index(above)
    ]
    assert not ups


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {module: (imports(module) & MODULES.keys()) - {module} for module in MODULES}
    while graph:
        leaves = {module for module, found in graph.items() if not found & graph.keys()}
        assert leaves, f"in a circle: {sorted(graph)}"
        graph = {module: found for module, found in graph.items() if module not in leaves}


def test_every_package_has_its_layer() -> None:
    packages = {path.parent.name for path in (ROOT / "rfflow").glob("*/__init__.py")} - {"_plugins"}
    assert packages == {*LAYERS} - {"__main__"}


@functools.cache
def heavy() -> frozenset[str]:
    """Return the modules that import a library that takes seconds, themselves or by another."""
    found = {module for module in MODULES if any(name.split(".")[0] in HEAVY for name in imports(module))}
    while more := {module for module in MODULES.keys() - found if found & imports(module)}:
        found |= more
    return frozenset(found)


def test_what_is_heavy_stands_below() -> None:
    """A page, a policy, a replay and the command's help need not wait for torch."""
    assert not {module for module in heavy() if layer(module) not in MAY_BE_HEAVY and module not in PLUGIN}


def test_everything_else_can_be_imported_without() -> None:
    """Not by what the source says, but with these libraries blocked."""
    free = sorted(MODULES.keys() - heavy() - {"rfflow.__main__"})
    code = (
        "import sys\n"
        f"for name in {HEAVY!r}:\n"
        "    sys.modules[name] = None\n"
        f"for name in {free!r}:\n"
        "    __import__(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
