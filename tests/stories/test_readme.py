"""What the READMEs tell people to type is understood, and what they point at is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from rfflow.control import ctl
from rfflow.launch import usage
from rfflow.results import commands as results
from tests.launch.test_cli import Shell

pytestmark = pytest.mark.usefixtures("hydra_restore_singletons")

ROOT = Path(__file__).parents[2]
# The template's own is filled in by `rfflow new` and tested there.
RECIPES = [path for path in sorted((ROOT / "recipes").glob("*/README.md")) if path.parent.name != "template"]
READMES = [ROOT / "README.md", *RECIPES]
TEXT = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in READMES}
COMMAND = re.compile(r"^ *(?:\$ )?((?:python -m )?rfflow .*?)(?:   *#.*)?$", re.MULTILINE)


def blocks(text: str) -> str:
    """Return the code that stands in lines of its own: between fences, or four blanks in."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return "\n".join([*fenced, *re.findall(r"^ {4}.*$", text, re.MULTILINE)])


def commands(text: str) -> list[list[str]]:
    """Return the words after rfflow of every command that stands in a line of its own."""
    lines = [shlex.split(line) for line in COMMAND.findall(blocks(text))]
    return [words[words.index("rfflow") + 1 :] for words in lines]


def all_commands(about_ctl: bool) -> list[str]:
    found = [shlex.join(words) for text in TEXT.values() for words in commands(text)]
    # These want an experiment that is there, and have tests of their own: test_replay, test_resuming, ..., test_ui.
    found = [line for line in found if not line.startswith(("replay ", "resume=", "new ", "ui"))]
    found = [line for line in found if line.split()[0] not in usage.AFTERWARDS]
    return [line for line in dict.fromkeys(found) if line.startswith("ctl ") is about_ctl]


@pytest.fixture
def rfflow(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Shell:
    """The command, in a directory that holds what the README's examples assume; it trains nothing."""
    monkeypatch.chdir(tmp_path)
    for number, yaml in enumerate(re.findall(r"```yaml\n(# @package.*?)```", TEXT["README.md"], re.DOTALL)):
        assert number == 0
        (tmp_path / "mine/recipe").mkdir(parents=True)
        (tmp_path / "mine/recipe/support.yaml").write_text(yaml)
    return Shell(capsys, monkeypatch)


def test_there_are_commands() -> None:
    assert ["+recipe=sft", "--multirun", "lr=1e-3,1e-4"] in commands(TEXT["README.md"])
    assert len(all_commands(about_ctl=False)) >= 8
    assert len(all_commands(about_ctl=True)) >= 3


@pytest.mark.parametrize("line", all_commands(about_ctl=False))
def test_a_command_is_understood(rfflow: Shell, line: str) -> None:
    """Every job of it is composed and read; the one that shows a mistake must be a mistake."""
    is_search = re.search(r"\bsearch\b", line)
    # Two configurations of a search are as good as all: composing one takes a third of a second.
    said = rfflow(*shlex.split(line), *(["search.n_trials=2", "search.budget=2"] if is_search else []))
    is_mistake = "learning_rat=" in line
    assert rfflow.status == 0 or is_mistake, said
    assert rfflow.engines or is_mistake or {"--help", "--cfg"} & set(shlex.split(line))


PAGES = [TEXT["README.md"], (ROOT / "docs/after.md").read_text(encoding="utf-8")]
AFTERWARDS = [shlex.join(words) for page in PAGES for words in commands(page) if words[0] in usage.AFTERWARDS]


@pytest.mark.parametrize("line", dict.fromkeys(AFTERWARDS))
def test_a_command_about_what_is_over_is_understood(
    line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It wants an experiment that is not there, and says no more than that."""
    monkeypatch.chdir(tmp_path)
    command, *rest = shlex.split(line)
    try:
        status = results.main(command, rest)
    except SystemExit as error:  # argparse
        status = int(error.code or 0)
    said = capsys.readouterr()
    assert status == 0 or (status == 1 and "does not exist" in said.err + said.out), said.err


@pytest.mark.parametrize("line", all_commands(about_ctl=True))
def test_a_ctl_command_is_understood(
    line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    status = ctl.main(shlex.split(line)[1:])
    assert status != ctl.USAGE, capsys.readouterr().err


def settings_of_the_table() -> list[str]:
    """The overrides in the tables of README.md."""
    rows = [line for line in TEXT["README.md"].splitlines() if line.startswith("| ")]
    found = [code for row in rows for code in re.findall(r"`([^`]+)`", row.split("|")[2])]
    return [code for code in found if "=" in code]


@pytest.mark.parametrize("settings", settings_of_the_table())
def test_a_setting_is_understood(rfflow: Shell, settings: str) -> None:
    said = rfflow("+recipe=sft", *shlex.split(settings))
    assert rfflow.status == 0, said
    assert len(rfflow.engines) == 1


@pytest.mark.parametrize("readme", TEXT)
def test_what_a_readme_points_at_is_there(readme: str) -> None:
    folder = (ROOT / readme).parent
    links = re.findall(r"\]\(([^)#:]+)\)", TEXT[readme])
    assert [link for link in links if not (folder / link).exists()] == []
    named = re.findall(r"`((?:conf|recipes|docs|benchmarks|tests)/[\w./-]*)`", TEXT[readme])
    assert [name for name in named if not (ROOT / name).exists()] == []
    makefile = (ROOT / "Makefile").read_text()
    assert [name for name in re.findall(r"\bmake (\w+)`", TEXT[readme]) if f"\n{name}:" not in makefile] == []


def test_the_tree_is_the_one_that_is_there() -> None:
    """Every name of the annotated source tree exists."""
    tree = TEXT["README.md"].partition("## The source")[2].split("```")[1]
    folders: list[str] = []
    for indent, name in re.findall(r"^( *)([\w.]+/|\w+\.py)(?= |$)", tree, re.MULTILINE):
        folders[len(indent) // 2 :] = [name]
        assert (ROOT / "".join(folders)).exists(), "".join(folders)
    assert len(folders) > 0
