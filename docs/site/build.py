"""Build the documentation's site into build/site, without a network: ``make docs``.

The pages are those that one reads in the repository, in the same places, so that their links hold in both. A link to a
file of the repository that is no page becomes that file's name. A link that leads nowhere ends the build.
"""

from __future__ import annotations

import os
import posixpath
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "build" / "pages"
_LINK = re.compile(r"^```.*?^```$|(?<!!)\[([^\]]*)\]\(([^)\s]+)\)|`[^`\n]+`", re.MULTILINE | re.DOTALL)
"""A link; or code, in which what looks like a link is none."""
_PICTURES = (".png", ".svg")


def sources() -> Iterator[Path]:
    """Give the repository's pages and pictures."""
    yield from (ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"))
    yield from sorted((ROOT / "docs").glob("*.md"))
    yield from (path for path in sorted((ROOT / "docs" / "pictures").iterdir()) if path.suffix in _PICTURES)
    yield from (path for path in sorted((ROOT / "recipes").glob("*/README.md")) if path.parent.name != "template")
    yield ROOT / "benchmarks" / "README.md"


def page_of(path: Path) -> str:
    """Return where a page stands in the site; the README is its front."""
    name = path.relative_to(ROOT).as_posix()
    return "index.md" if name == "README.md" else name


def linked(text: str, path: Path, pages: frozenset[str]) -> str:
    """Return a page's text with the links that it has in the site.

    Args:
        text: what stands in the file.
        path: the file.
        pages: all pages of the site.

    Raises:
        ValueError: for a link to what is not in the repository.
    """

    def replaced(match: re.Match[str]) -> str:
        label, target = match.groups()
        if target is None:
            return match.group()
        name, _, anchor = target.partition("#")
        if not name or "://" in target:
            return match.group()
        there = posixpath.normpath(posixpath.join(path.relative_to(ROOT).parent.as_posix(), name))
        if not (ROOT / there).exists() and there != "docs/settings.md":
            raise ValueError(f"{path.relative_to(ROOT)}: the link to {target} leads nowhere")
        if there == "conf":
            there = "docs/settings.md"
        there = "index.md" if there == "README.md" else there
        if there not in pages:
            return label if label.strip("`") == there else f"{label} (`{there}`)"
        own = page_of(path)
        return f"[{label}]({os.path.relpath(there, posixpath.dirname(own) or '.')}{'#' + anchor if anchor else ''})"

    return _LINK.sub(replaced, text)


def settings() -> str:
    """Return the page on every setting: the files in ``conf/``, whose comments say what each is for."""
    lines = [
        "# Every setting",
        "",
        "What stands in `conf/`, word for word: values are the defaults, and the comment beside each says what it is "
        "for. A group's option is chosen by its name (`peft=lora_small`), a value set by its path "
        "(`engine.on_nan=stop`); commas sweep either. `rfflow +recipe=sft --cfg job` shows what comes of it.",
    ]
    files = sorted((ROOT / "conf").glob("*/*.yaml"))
    groups = sorted({path.parent.name for path in files})
    for path in [ROOT / "conf" / "config.yaml", *files, *sorted((ROOT / "conf").glob("*/*/*.yaml"))]:
        where = path.relative_to(ROOT / "conf")
        group = where.parent.as_posix()
        if group in groups:
            lines += ["", f"## {group}"]
            groups.remove(group)
        plus = "+" if group == "recipe" else ""
        chosen = "The root" if group == "." else f"`{plus}{group}={path.stem}`"
        lines += ["", f"{'##' if group == '.' else '###'} {chosen}", "", "```yaml"]
        lines += [path.read_text(encoding="utf-8").rstrip(), "```"]
    return "\n".join(lines) + "\n"


def stage() -> None:
    """Put the pages together in build/pages."""
    shutil.rmtree(PAGES, ignore_errors=True)
    found = list(sources())
    pages = frozenset(["docs/settings.md", *(page_of(path) for path in found)])
    for path in found:
        target = PAGES / page_of(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".md":
            target.write_text(linked(path.read_text(encoding="utf-8"), path, pages), encoding="utf-8")
        else:
            shutil.copyfile(path, target)
    (PAGES / "docs" / "settings.md").write_text(settings(), encoding="utf-8")


def main() -> int:
    """Build the site; return the exit status."""
    os.environ["NO_MKDOCS_2_WARNING"] = "1"
    try:
        stage()
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    from mkdocs.commands.build import build  # type: ignore[import-untyped,import-not-found,unused-ignore]
    from mkdocs.config import load_config  # type: ignore[import-untyped,import-not-found,unused-ignore]
    from mkdocs.exceptions import Abort  # type: ignore[import-untyped,import-not-found,unused-ignore]

    try:
        build(load_config(str(Path(__file__).with_name("mkdocs.yml"))))
    except Abort as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{ROOT / 'build' / 'site' / 'index.html'}")
    return 0


if __name__ == "__main__":
    import logging

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    sys.exit(main())
