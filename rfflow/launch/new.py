"""``rfflow new my_recipe`` writes a recipe to begin with: configuration, functions, a few rows, all of one's own."""

from __future__ import annotations

import keyword
import sys
from collections.abc import Sequence
from pathlib import Path

from rfflow.files import typed_command

TEMPLATE = Path(__file__).resolve().parents[2] / "recipes" / "template"
NAME = "my_recipe"  # as the template calls itself


def main(argv: Sequence[str]) -> int:
    """Write the recipe; return the exit status."""
    if len(argv) != 1 or argv[0].startswith("-"):
        print("Usage: rfflow new NAME\n\nWrites the recipe NAME to a folder of that name, with a command to run it.")
        return 0 if list(argv) in (["-h"], ["--help"]) else 2
    name = argv[0]
    if not name.isidentifier() or keyword.iskeyword(name):
        print(f"{name!r} cannot be imported as a Python module. Allowed: letters, digits and _.", file=sys.stderr)
        return 2
    folder = Path(name)
    if folder.exists():
        print(f"{name} is there already. Choose another name, or move it away.", file=sys.stderr)
        return 1
    for path in write(folder):
        print(path)
    print(f"\n{typed_command()} --config-dir {name}/conf +recipe={name} --multirun lr=1e-3,1e-4")
    return 0


def write(folder: Path) -> list[Path]:
    """Copy the template under the folder's name; return what was written."""
    written = []
    for source in sorted(path for path in TEMPLATE.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        target = folder / str(source.relative_to(TEMPLATE)).replace(NAME, folder.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(source.read_text(encoding="utf-8").replace(NAME, folder.name), encoding="utf-8")
        written.append(target)
    return written
