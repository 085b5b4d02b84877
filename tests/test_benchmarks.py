"""The benchmark's scripts run, at their smallest, so that they can be trusted to run on the day they are wanted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import report
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
    grown = [{"rfflow": {**side, "samples": samples, "gaps": [0.02] * 19}}]
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
