"""``rfflow ui`` serves this machine, and says where the tab is."""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from rfflow.launch import ui
from tests.dashboard.made import make_experiment


def test_it_says_where_the_tab_is_and_serves_it(tmp_path: Path) -> None:
    make_experiment(tmp_path / "outputs" / "sft" / "one")
    command = [sys.executable, "-m", "rfflow", "ui", "--port", "0", "--path_prefix", "/tb", "--load_fast", "false"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stdout is not None
        try:
            said = process.stdout.readline()
            address = said.split()[0].removesuffix("#rfflow")
            assert address.startswith("http://localhost:") and "one experiment in outputs" in said
            with urllib.request.urlopen(f"{address}data/plugin/rfflow/experiments") as answer:
                assert b'"sft/one"' in answer.read()
        finally:
            process.kill()  # Ctrl-C is not heard where a shell has put the tests into the background


@pytest.mark.parametrize(
    ("words", "said"),
    [(["nowhere"], "no folder nowhere"), ([".", "--bind_all"], "this machine alone"), ([".", "--host=::"], "ssh -L")],
)
def test_what_cannot_be_is_answered(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert ui.main(words) in (1, 2)
    assert said in capsys.readouterr().err


def test_ctrl_c_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rfflow.launch.ui._start", lambda folder, others: "http://localhost:6006/#rfflow")
    monkeypatch.setattr("rfflow.launch.ui._wait", interrupted)
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    assert ui.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("http://localhost:6006/#rfflow  (no experiment yet") and not opened
    assert ui.main([str(tmp_path), "--open"]) == 0 and opened == ["http://localhost:6006/#rfflow"]
