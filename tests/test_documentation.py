"""The site's pages: every link leads somewhere, every page is in the navigation, every setting in the reference."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).parents[1]


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """What builds the site, into a folder of the test's."""
    spec = importlib.util.spec_from_file_location("build_site", ROOT / "docs/site/build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "PAGES", tmp_path / "pages")
    return module


def test_every_link_of_a_page_leads_somewhere(site: ModuleType) -> None:
    site.stage()
    pages = {path.relative_to(site.PAGES).as_posix() for path in site.PAGES.rglob("*.md")}
    named = set(_leaves(yaml.safe_load((ROOT / "docs/site/mkdocs.yml").read_text())["nav"]))
    assert pages == named
    text = (site.PAGES / "docs/settings.md").read_text()
    for path in (ROOT / "conf").rglob("*.yaml"):
        assert path.read_text().rstrip() in text, path
    front = (site.PAGES / "index.md").read_text()
    assert "[conf/](docs/settings.md)" in front and "(recipes/sft/README.md)" in front


@pytest.mark.parametrize(
    ("text", "becomes"),
    [
        ("[x](after.md#trying-it)", "[x](after.md#trying-it)"),
        ("[the front](../README.md#recipes)", "[the front](../index.md#recipes)"),
        ("[`it`](../rfflow/scores.py)", "`it` (`rfflow/scores.py`)"),
        ("`[x](nowhere.md)`", "`[x](nowhere.md)`"),
        ("```\n[x](nowhere.md)\n```", "```\n[x](nowhere.md)\n```"),
    ],
)
def test_links_hold_in_the_site(site: ModuleType, text: str, becomes: str) -> None:
    pages = frozenset(["index.md", "docs/after.md", "docs/data.md"])
    assert site.linked(text, ROOT / "docs/data.md", pages) == becomes


def test_a_link_that_leads_nowhere_is_named(site: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"docs/data.md: the link to nowhere.md leads nowhere"):
        site.linked("[x](nowhere.md)", ROOT / "docs/data.md", frozenset())


def _leaves(nav: object) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    values = nav.values() if isinstance(nav, dict) else nav
    return [leaf for value in values for leaf in _leaves(value)]  # type: ignore[attr-defined]


def test_which_pythons_were_run_is_said(tmp_path: Path) -> None:
    """``make test-all``: those that are there, each in its own environment; a failure and a missing one are named."""
    for name, body in {
        "python3.11": "",
        "python3.12": "",
        "make": 'echo "$@" >> asked; case "$*" in *3.12*) exit 1;; esac',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\ncd {tmp_path}\n{body}\n")
        (tmp_path / name).chmod(0o755)
    script = ROOT / "tests/all_pythons.sh"
    env = {"PATH": f"{tmp_path}:/bin", "MAKE": str(tmp_path / "make"), "PYTHONS": "3.11 3.12 3.99"}
    done = subprocess.run(["/bin/sh", str(script)], capture_output=True, text=True, env=env)
    assert done.stdout.strip() == "Passed: 3.11. Failed: 3.12. Not to be had here: 3.99." and done.returncode == 1
    assert (tmp_path / "asked").read_text().splitlines() == [
        f"test VENV=.venv-{version} PYTHON={tmp_path}/python{version}" for version in ("3.11", "3.12")
    ]
