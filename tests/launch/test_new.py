"""``rfflow new``: what it writes trains as it is, and it overwrites nothing."""

from __future__ import annotations

import csv
import shlex
import sys
from pathlib import Path

import pytest

from rfflow import __main__ as cli

pytestmark = pytest.mark.usefixtures("hydra_restore_singletons")


def rfflow(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["rfflow", *words])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_a_new_recipe_trains_as_it_is(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the command that its page begins with, and its own functions for rows, scores and rewards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert rfflow(monkeypatch, "new", "shop_talk") == 0
    page = Path("shop_talk/README.md").read_text(encoding="utf-8")
    command = page.splitlines()[0].strip()
    assert command.removeprefix("python -m ") in capsys.readouterr().out and "my_recipe" not in page
    words = [*shlex.split(command)[3:], "model=hub", f"model.name={tiny_model}", "trainer.args.max_length=256"]
    assert rfflow(monkeypatch, *words) == 0
    (root,) = Path("outputs/shop_talk").iterdir()
    with open(root / "runs.csv", encoding="utf-8") as file:
        runs = list(csv.DictReader(file))
    assert [run["state"] for run in runs] == ["completed"] * 2
    assert all(0 <= float(run["eval_rouge_l"]) <= 1 and run["eval_share_of_short"] for run in runs)
    from shop_talk.functions import reward_short  # type: ignore[import-not-found]

    assert reward_short(["x", [{"role": "assistant", "content": "y" * 99}]]) == [1.0, 0.0]


@pytest.mark.parametrize(("name", "status"), [("my-recipe", 2), ("class", 2), ("there", 1), ("--help", 0), ("", 2)])
def test_it_writes_only_what_is_new(
    name: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()
    assert rfflow(monkeypatch, "new", name) == status
    assert [path.name for path in tmp_path.iterdir()] == ["there"] and not list(Path("there").iterdir())
    out, err = capsys.readouterr()
    assert out or err
