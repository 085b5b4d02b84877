"""The benchmark's scripts run, at their smallest, so that they can be trusted to run on the day they are wanted."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from benchmarks import gangs, report
from benchmarks.figures import BEGIN, END, Figure, read_results, write_readme, write_results

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_every_part_measures_something(tmp_path: Path) -> None:
    """One run a side on the tiny model; both sides must end with the same adapters, or the script fails."""
    out = tmp_path / "results.json"
    command = [sys.executable, str(ROOT / "benchmarks/against_trl.py"), "--model", "tiny", "--repeat", "1"]
    process = subprocess.run(
        [*command, "--runs", "2", "--steps", "4", "--out", str(out)], capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    results, _ = read_results(out)
    assert set(results) == {"switches", "wall", "saving", "first", "memory", "startup", "ops"}
    names = [figure.name for figure in results["ops"]["tiny"]]
    for verb in ("stop", "resume", "clone", "delete"):
        assert any(name.startswith(verb) for name in names), names
    assert all(value > 0 for figure in results["wall"]["tiny, 4 steps a run"] for value in figure.values)


def test_a_part_that_is_measured_again_replaces_only_itself(tmp_path: Path) -> None:
    """Parts are measured on different days; the page is made from all of them."""
    out, readme = tmp_path / "results.json", tmp_path / "README.md"
    readme.write_text(f"Before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    write_results(out, {"wall": {"tiny": [Figure("ratio", (0.5, 0.7, 0.9), "", 1)]}, "ops": {"tiny": []}})
    results, machine = read_results(out)
    results["wall"]["smollm2"] = [Figure("ratio", (1.5,), "", 1)]
    write_results(out, results)
    assert machine["cores"] and json.loads(out.read_text())["results"].keys() == {"wall", "ops"}
    write_readme(out, {"wall": "Wall time"}, readme)
    text = readme.read_text(encoding="utf-8")
    assert text.startswith("Before\n") and text.endswith("\nafter\n") and "old" not in text
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "ratio" in line]
    assert rows == [["ratio", "0.7", "0.5", "0.9", "3", "< 1", "yes"], ["ratio", "1.5", "1.5", "1.5", "1", "< 1", "no"]]


def test_a_quota_is_used_fairly_and_nothing_is_sent_in_vain() -> None:
    from benchmarks.limits import Server, play
    from rfflow.config.spec import LimitSpec

    ours, retries = play(Server(tpm=2e5), LimitSpec(tpm=2e5)), play(Server(tpm=2e5), None)
    assert ours.server.seen["wasted"] == ours.lost == 0 and ours.use > 0.95
    assert min(ours.fairness(part) for part in (0.25, 0.5)) > 0.9
    assert retries.lost > 1000 and retries.server.seen["wasted"] > 4000


def test_a_plain_loop_asks_all(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openai", reason="the extra `api` is not installed")
    from benchmarks import together

    monkeypatch.setattr(together, "LATENCY", 0.0)
    server = together.Counting()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    assert asyncio.run(together.by_loop(server, 1)) > 0 and server.requests == together.QUESTIONS
    server.shutdown()
    server.server_close()


def test_policies_are_raced_on_the_same_answers() -> None:
    from benchmarks.racing import POLICIES, answers, play

    scores = answers(4, 64, "F1", np.random.default_rng(1))
    shares = {name: play(scores, make())[2] for name, make in POLICIES.items()}
    assert all(0 < share <= 1 for share in shares.values()) and shares["halving"] < 0.5


def test_intervals_are_counted_where_they_hold() -> None:
    from benchmarks.coverage import UNIT, cover_one, limits_of_others, others_cover_one

    right, ones = (np.arange(100) < 70).astype(float), np.ones(100)
    assert cover_one(right, ones, UNIT, 50, 1) > 0.9 > others_cover_one("normal", right, ones, UNIT, 50, 1)
    # By hand: 1.96 standard errors of 50 in 101, and no width at the end of the range.
    low, high = limits_of_others("normal", np.array([0.5, 1.0]), 50, 101, UNIT)
    assert high - low == pytest.approx([2 * 1.959964 * (0.25 / 50 * 51 / 100) ** 0.5, 0])
    low, high = limits_of_others("hoeffding", np.array([3.0]), 50, 101, (1.0, 5.0))
    assert high - low == pytest.approx([8 * (np.log(40) / 100 * 51 / 100) ** 0.5])


@pytest.mark.slow
def test_gangs_are_measured_in_every_form(capsys: pytest.CaptureFixture[str]) -> None:
    """Against the same runs one by one."""
    assert gangs.main(["--runs", "2", "--shapes", "1x16", "--steps", "1", "--rounds", "1"]) == 0
    *_, row = capsys.readouterr().out.splitlines()
    assert row.startswith("| tiny | 1x16 | 2 |") and row.count("|") == 11


@pytest.mark.slow
def test_the_report_is_measured_in_slices_and_made_of_what_there_is(tmp_path: Path) -> None:
    """The same command goes on where it was; a figure above 1 is told as what it is; different bits fail it."""
    small = ["--model", "tiny", "--runs", "2", "--steps", "4", "--repeat", "1", "--out", str(tmp_path)]
    assert report.main(["--only", "boundary,early", *small]) == 0
    page = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "16 chunks of 2 runs: check of the base" in page and "halving eta=2, 64 configurations: regret" in page
    file = tmp_path / "parts/boundary-tiny.json"
    before = file.read_text(encoding="utf-8")
    report.main(["--only", "boundary", *small])
    assert file.read_text(encoding="utf-8") == before
    side = {"seconds": 10.0, "cpu": 9.0, "peak": 5e8, "first": 4.0, "began": 3.0, "quarters": [8.0]}
    ours = {**side, "seconds": 12.0, "equal": True}
    names = [f"{kind}, {who}" for kind in ("SFT", "DPO", "GRPO") for who in ("rfflow", "careful TRL")]
    rounds = [{name: ours if name.endswith("rfflow") else side for name in names}] * 3
    samples = [{"time": float(step), "memory": 6e8 + step, "threads": 20, "files": 30} for step in range(20)]
    grown = [{"rfflow": {**side, "samples": samples, "gaps": [0.02] * 19, "between": [0.01] * 19, "start_cpu": 9.0}}]
    about = json.loads(before)
    for part, made in (("trainers", rounds), ("growth", grown)):
        content = {**about, "part": part, "rounds": made}
        (tmp_path / f"parts/{part}-tiny.json").write_text(json.dumps(content), encoding="utf-8")
    assert report.main(["--render", "--out", str(tmp_path)]) == 0
    page = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "- tiny: GRPO, 2 runs: rfflow / careful TRL, wall: 1.2" in page and "*Why, wall:*" in page
    assert "9 pairs, 0 different" in page and "threads, last tenth" in page
    assert (tmp_path / "growth-tiny.png").exists() and (tmp_path / "trainers-tiny.png").exists()
    ours["equal"] = False
    (tmp_path / "parts/trainers-tiny.json").write_text(json.dumps({**about, "part": "trainers", "rounds": rounds}))
    assert report.main(["--render", "--out", str(tmp_path)]) == 1
