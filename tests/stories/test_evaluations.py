"""Evaluations from the command to the files: a model and a user's own program, steered, killed and gone on with."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.tiny import make_rows, write_jsonl

pytestmark = pytest.mark.usefixtures("hydra_restore_singletons")

CODE = '''
import asyncio, os, pathlib, signal

async def answer(item, wrong=4, control=None):
    """A program of a user's; what it is asked, it notes."""
    with open("calls.txt", "a") as calls:
        calls.write(item["id"] + "\\n")
    count = len(pathlib.Path("calls.txt").read_text().splitlines())
    if count == int(os.environ.get("KILL_AT", 0)):
        os.kill(os.getpid(), signal.SIGKILL)
    if count == int(os.environ.get("STEER_AT", 0)):
        steer()
    await asyncio.sleep(0)
    number = int(item["id"])
    if number == 7:
        raise ValueError("no answer to that")
    return "nobody" if number % wrong == 0 else {"answer": f"It is {number}", "cost": 0.5, "found": ["a"]}

def steer():
    (root,) = pathlib.Path("outputs/pipeline").iterdir()
    for name, text in {
        "010-stop": "{op: stop, run: 1}",
        "020-delete": "{op: delete, run: 2}",
        "030-clone": "{op: clone, run: 0, overrides: [pipeline.wrong=5]}",
        "040-warm": "{op: clone, run: 0, overrides: [pipeline.wrong=6], warm_start: true}",
        "050-resume": "{op: resume, run: 1}",
    }.items():
        aside = root / "control" / f".{name}"
        aside.write_text(text)
        os.utime(aside, (1e9, 1e9))  # put in place long after it was written: it is taken at once
        aside.rename(root / "control" / f"{name}.yaml")

def length(answer):
    return len(answer) / 20

def fatal(answer):
    """A metric of a user's that ends the process, where it is asked to."""
    with open("scored.txt", "a") as scored:
        scored.write("x")
    if len(pathlib.Path("scored.txt").read_text()) == int(os.environ.get("KILL_SCORING_AT", 0)):
        os.kill(os.getpid(), signal.SIGKILL)
    return 0.0

async def marking(messages):
    """A judge's model; what it is asked, it notes."""
    with open("judged.txt", "a") as judged:
        judged.write("x")
    answer = messages[-1]["content"].rpartition(" ")[2]
    return "Score: 4" if answer.isdigit() and int(answer) % 2 else "I like it."

def plain(messages):
    return messages[-1]["content"]
'''
PIPELINE = [
    *("+recipe=pipeline", "--multirun", "pipeline._target_=my_code.answer", "dataset.path=questions.jsonl"),
    *("pipeline.concurrency=2", "metrics.f1=null", "metrics.recall=rfflow.evals.metrics.recall", "chunks=4"),
    "objective.metric=eval_contains",
]

Evaluate = Callable[..., list[dict[str, str]]]


@pytest.fixture
def evaluate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Evaluate:
    """Returns what runs the command in this process and returns runs.csv."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_code", raising=False)
    Path("my_code.py").write_text(CODE)
    rows = [{"question": f"What is {n}?", "reference": str(n), "relevant": ["a"]} for n in range(20)]
    write_jsonl(tmp_path / "questions.jsonl", rows)

    def run(*words: str) -> list[dict[str, str]]:
        from rfflow import __main__ as cli

        monkeypatch.setattr(sys, "argv", ["rfflow", *words])
        cli.main()
        return table()

    return run


def table() -> list[dict[str, str]]:
    with (root() / "runs.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def root() -> Path:
    (found,) = Path("outputs").glob("*/*")
    return found


def items(run: int) -> list[dict[str, object]]:
    return [json.loads(line) for line in (root() / f"runs/{run}/items.jsonl").read_text().splitlines()]


def test_prompts_are_compared_on_a_model(
    evaluate: Evaluate, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"question": each["prompt"], "reference": each["completion"]} for each in make_rows(40)]
    write_jsonl(tmp_path / "sums.jsonl", rows)
    model = ["model=hub", f"model.name={tiny_model}", "model.dtype=float32", "generator.max_new_tokens=4"]
    data = ["dataset=questions", "dataset.path=sums.jsonl", "dataset.eval_size=12", "chunks=3", "prompt=question"]
    runs = evaluate("+recipe=prompts", "--multirun", "prompt.fewshot=0,2", *model, *data)
    assert [(run["state"], run["step"], run["eval_missing"]) for run in runs] == [("completed", "12", "0.0")] * 2
    assert all(run["eval_number_match_low"] == run["eval_number_match"] for run in runs), "at the end it is known"
    assert float(runs[1]["eval_tokens"]) > 2 * float(runs[0]["eval_tokens"]), "examples are tokens"
    one, other = items(0), items(1)
    assert [each["id"] for each in one] == [each["id"] for each in other], "both in one order"
    assert sorted(int(str(each["position"])) for each in one) == list(range(12))
    said = capsys.readouterr().out
    assert "chunk 1/3  run 0  prompt.fewshot=0  step 4/12  eval_number_match 0.000 [0.000, 0." in said
    assert "runs/1/items.jsonl" in said and "loss" not in said
    logged = [json.loads(line)["metrics"] for line in (root() / "runs/0/metrics.jsonl").read_text().splitlines()]
    widths = [each["eval_number_match_high"] - each["eval_number_match_low"] for each in logged]
    assert widths[0] > widths[1] > widths[2] == 0
    assert list((root() / "tb").glob("0 *")) and (root() / "timeline.json").exists()
    page = b"".join(path.read_bytes() for path in (root() / "tb").glob("experiment*/events*"))
    assert b"eval/number_match_low" in page and b"limits" in page


def test_ops_are_as_for_training(evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEER_AT", "2")
    runs = evaluate(*PIPELINE, "pipeline.wrong=2,3,4")
    assert [run["state"] for run in runs] == ["completed", "completed", "deleted", "completed"]
    assert [run["step"] for run in (runs[0], runs[1], runs[3])] == ["20"] * 3 and int(runs[2]["step"]) < 20
    assert runs[3]["parent"] == "0" and len(items(3)) == 20
    refused = next((root() / "control/rejected").glob("*.error")).read_text()
    assert "evaluation" in refused or "weights" in refused
    lines = [json.loads(line) for line in (root() / "runs/3/metrics.jsonl").read_text().splitlines()]
    of_parent = [json.loads(line) for line in (root() / "runs/0/metrics.jsonl").read_text().splitlines()]
    widths = [
        [each["metrics"]["eval_contains_high"] - each["metrics"]["eval_contains_low"] for each in found]
        for found in (lines, of_parent)
    ]
    assert widths[0][1] > widths[1][1], "what comes later has less of what may go wrong"
    # One question has no answer: its score is missing, and the interval says so to the end.
    assert all(run["eval_missing"] == "1.0" for run in (runs[0], runs[3]))
    assert float(runs[0]["eval_contains_high"]) - float(runs[0]["eval_contains_low"]) == pytest.approx(1 / 20)
    assert float(runs[0]["eval_cost"]) == 0.5 * sum("It is" in str(each["answer"]) for each in items(0))


def test_all_are_compared_with_the_leading_one_and_with_a_chosen_one(
    evaluate: Evaluate, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = evaluate(*PIPELINE, "pipeline.wrong=2,3,5", "stats.baseline=1")
    with (root() / "differences.csv").open() as file:
        rows = {(row["run"], row["as"]): row for row in csv.DictReader(file)}
    assert set(rows) == {("0", "leader"), ("1", "leader"), ("0", "baseline"), ("2", "baseline")}
    assert {row["against"] for (_, role), row in rows.items() if role == "leader"} == {"2"}
    gap = float(runs[0]["eval_contains"]) - float(runs[1]["eval_contains"])
    found = rows["0", "baseline"]
    assert float(found["difference"]) == pytest.approx(gap) and found["missing"] == "1"
    assert float(found["beyond_low"]) < float(found["low"]) < gap < float(found["high"]) < float(found["beyond_high"])
    assert float(runs[0]["eval_contains_beyond_low"]) < float(runs[0]["eval_contains_low"])
    with pytest.raises(SystemExit):
        evaluate(*PIPELINE, "pipeline.wrong=2,3", "stats.baseline=2", "hydra.sweep.dir=other")
    assert "stats.baseline is 2, and no evaluation has that number. Allowed: 0-1." in capsys.readouterr().err


def test_a_search_chooses_what_is_evaluated(evaluate: Evaluate, capsys: pytest.CaptureFixture[str]) -> None:
    runs = evaluate(*PIPELINE, "pipeline.wrong=range(2,9)", "search=random", "search.n_trials=2", "search.budget=3")
    assert [(run["state"], run["step"]) for run in runs] == [("completed", "20")] * 3
    best = next(run for run in runs if run["rank"] == "1")
    assert float(best["eval_contains"]) == max(float(run["eval_contains"]) for run in runs)
    assert f"Best of the search: {best['overrides']}" in capsys.readouterr().out


def test_answers_are_scored_anew_without_asking(evaluate: Evaluate, capsys: pytest.CaptureFixture[str]) -> None:
    runs = evaluate(*PIPELINE, "pipeline.wrong=2,3")
    from rfflow.results import commands

    calls = Path("calls.txt").read_text()
    capsys.readouterr()
    assert commands.main("rescore", [str(root()), "metrics.length=my_code.length", "metrics.contains=null"]) == 0
    assert Path("calls.txt").read_text() == calls, "nobody is asked"
    said = capsys.readouterr().out
    with (root() / "rescored.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["eval_exact_match"] for row in rows] == [run["eval_exact_match"] for run in runs]
    assert 0 < float(rows[0]["eval_length"]) < 1 and "run 1  eval_exact_match" in said
    assert commands.main("rescore", [str(root()), "metrics=number", "metrics.length=my_code.length"]) == 0
    with (root() / "rescored.csv").open() as file:
        heads = set(csv.DictReader(file).fieldnames or ())
    assert {"eval_number_match", "eval_length"} < heads and "eval_exact_match" not in heads, "those of the group"
    assert commands.main("rescore", [str(root()), "metrics=numbr"]) == 1
    assert "metrics is 'numbr', and no such group. Did you mean 'number'?" in capsys.readouterr().err
    assert commands.main("rescore", [str(root()), "length=my_code.length"]) == 1
    assert "'length=my_code.length' is no metric" in capsys.readouterr().err


def test_a_judge_is_asked_after_each_shard_and_what_it_says_amiss_is_missing(
    evaluate: Evaluate, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = [
        "metrics=judged",
        "generator@metrics.judge.generator=none",
        "+metrics.judge.generator._target_=my_code.marking",
    ]
    (run,) = evaluate(
        *PIPELINE, *judge, "metrics.judge.prompt='{{ question }} {{ reference }} {{ answer }}'", "chunks=2"
    )
    marked = {int(str(each["id"])): each for each in items(0)}  # the last line of each
    # Answered with their number are those that no 4 divides, less 7 which has no answer.
    right = [n for n in range(20) if n % 4 and n != 7]
    scores = {n: each["scores"]["judge"] for n, each in marked.items()}  # type: ignore[index]
    assert {n for n, score in scores.items() if score is not None} == {n for n in right if n % 2}
    assert set(scores.values()) == {None, 0.75} and float(run["eval_judge"]) == 0.75
    assert float(run["eval_judge_low"]) < 0.75 < float(run["eval_judge_high"]), "what is missing may be anything"
    assert "there is no mark in what the judge has said: 'I like it.'" in str(marked[2]["error"])
    assert len(Path("judged.txt").read_text()) == 19 and len(items(0)) == 20 + 19, "the answer first, then its mark"
    from rfflow.results import commands

    assert commands.main("rescore", [str(root()), "metrics.length=my_code.length"]) == 0
    assert len(Path("judged.txt").read_text()) == 19, "nobody is asked"
    with (root() / "rescored.csv").open() as file:
        assert next(csv.DictReader(file))["eval_judge"] == run["eval_judge"]
    assert commands.main("rescore", [str(root()), "metrics.other._target_=rfflow.evals.judging.Judge"]) == 1
    assert "metrics.other is a judge, who asks a model" in capsys.readouterr().err


def test_what_a_run_has_trained_answers_beside_its_base(
    evaluate: Evaluate, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of two runs the better one is evaluated after a chunk, beside the base; meanwhile the process is killed."""
    write_jsonl(tmp_path / "sums.jsonl", make_rows(40))
    overrides = ["trainer=none", "+generator=transformers_short", "+prompt=question", "+metrics=qa"]
    overrides += ["generator.max_new_tokens=4", "dataset.columns={prompt: question, completion: reference}"]
    rule = {"at_chunk": 1, "select": {"best": 1}, "do": "clone", "overrides": overrides}
    warm = {**rule, "warm_start": True, "overrides": [*overrides, "+metrics.mine=my_code.fatal"]}
    rules = [{"name": "adapter", **warm}, {"name": "base", **rule}]
    (tmp_path / "rules.yaml").write_text(json.dumps({"rules": rules}))
    words = [
        "+recipe=sft",
        "--multirun",
        "lr=1e-2,1e-4",
        "model=hub",
        f"model.name={tiny_model}",
        "model.dtype=float32",
    ]
    words += ["dataset=local", "dataset.path=sums.jsonl", "dataset.eval_size=12", "chunks=2", "policy=rules"]
    words += ["policy.file=rules.yaml", "trainer.args.max_steps=4", "trainer.args.use_cpu=true"]
    words += ["evaluation.generate.samples=4", "evaluation.generate.max_new_tokens=4"]
    words += ["objective.metric=eval_exact_match", "objective.direction=maximize"]
    environment = {**os.environ, "KILL_SCORING_AT": "9", "PYTHONPATH": os.pathsep.join([p for p in sys.path if p])}
    command = [sys.executable, "-m", "rfflow", *words]
    killed = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    runs = evaluate(f"resume={root()}")
    assert [(run["state"], run["parent"]) for run in runs][2:] == [("completed", runs[2]["parent"])] * 2, runs
    from rfflow.results.opened import open_experiment

    warm, cold = items(2), items(3)
    assert len(warm) == len(cold) == 12 and [each["id"] for each in warm] == [each["id"] for each in cold]
    for before, beside in ((warm[:6], cold[:6]), (warm[6:], cold[6:])):  # of the first process, and of the second
        assert [each["answer"] for each in before] != [each["answer"] for each in beside], "what was trained answers"
    with (root() / "differences.csv").open() as file:
        (row,) = list(csv.DictReader(file))
    assert {row["run"], row["against"]} == {"2", "3"} and row["questions"] == "12"
    assert open_experiment(str(root())).experiment.run(2).is_evaluation

    # Later, and elsewhere, the adapter that was trained answers by its run's directory.
    words = [
        "+recipe=prompts",
        "--multirun",
        "model=hub",
        f"model.name={tiny_model}",
        "model.dtype=float32",
        "chunks=2",
    ]
    words += ["dataset=questions", "dataset.path=sums.jsonl", "dataset.eval_size=12", "prompt=question", "metrics=qa"]
    words += ["dataset.columns={prompt: question, completion: reference}", "generator.max_new_tokens=4"]
    words += ["objective.metric=eval_f1", "hydra.sweep.dir=later"]
    evaluate(*words, f"generator.adapter=null,{root()}/runs/{runs[2]['parent']}")
    alone, adapted = (Path(f"later/runs/{run}/items.jsonl").read_text().splitlines() for run in (0, 1))
    assert [json.loads(line)["answer"] for line in alone] == [each["answer"] for each in cold]
    assert [json.loads(line)["answer"] for line in alone] != [json.loads(line)["answer"] for line in adapted]


def test_a_race_stops_who_is_surely_behind(
    evaluate: Evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"question": f"What is {n}?", "reference": str(n)} for n in range(100, 180)]
    write_jsonl(tmp_path / "many.jsonl", [{"id": n, **row} for n, row in enumerate(rows, 100)])
    words = [word for word in PIPELINE if not word.startswith(("dataset.path", "metrics.recall"))]
    runs = evaluate(*words, "pipeline.wrong=1,2,500", "dataset.path=many.jsonl", "policy=race", "chunks=8")
    assert [run["state"] for run in runs] == ["stopped", "stopped", "completed"]
    assert int(runs[0]["step"]) <= int(runs[1]["step"]) < 80 == int(runs[2]["step"])
    ops = [json.loads(line) for line in (root() / "ops.jsonl").read_text().splitlines()]
    assert {op["by"] for op in ops} == {"policy/race"} and all("to run 2 on" in json.dumps(op) for op in ops)
    assert [run["rank"] for run in runs] == ["3", "2", "1"]
    from rfflow.config.files import CONF
    from rfflow.policies.replay import main as replay

    data = ["dataset.path=many.jsonl", "chunks=8", "hydra.sweep.dir=whole"]
    evaluate(*words, "pipeline.wrong=1,2,500", *data)
    capsys.readouterr()
    assert replay(["whole", "policy=race"], CONF) == 0
    said = capsys.readouterr().out
    assert "stop run 0: " in said and "to run 2 on" in said
    assert " of the answers (" in said and "Chosen: run 2 with eval_contains" in said and "nothing lost" in said
    assert replay([str(root()), "policy=race"], CONF) == 0
    assert "Chosen: run 2" in capsys.readouterr().out, "those that the race had stopped are still behind"


def test_after_a_kill_nothing_is_asked_twice_but_what_was_on_its_way(evaluate: Evaluate) -> None:
    """The process is killed in the middle of a shard."""
    words = [sys.executable, "-m", "rfflow", *PIPELINE, "pipeline.wrong=2,3"]
    environment = {**os.environ, "KILL_AT": "23", "PYTHONPATH": os.pathsep.join([p for p in sys.path if p])}
    killed = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    there = {run: [each["position"] for each in items(run)] for run in (0, 1)}
    assert 23 - 2 <= sum(map(len, there.values())) <= 23 - 1
    runs = evaluate(f"resume={root()}")
    assert [(run["state"], run["step"]) for run in runs] == [("completed", "20")] * 2
    for run in (0, 1):
        assert [each["position"] for each in items(run)][: len(there[run])] == there[run]
        assert sorted(int(str(each["position"])) for each in items(run)) == list(range(20))
    assert 40 <= len(Path("calls.txt").read_text().splitlines()) <= 42


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("lr=1e-3", "this run is an evaluation, in which nothing is trained. Leave lr out."),
        ("peft=lora", "this run is an evaluation, in which nothing is trained. Say peft=none;"),
        ("trainer=sft", "a generator (or a pipeline) and a trainer"),
        ("prompt=question", "pipeline and prompt are both set"),
        ("objective.metric=eval_loss", "objective.metric is 'eval_loss', and an evaluation has none. There are: "),
        ("objective.metric=eval_contain", "'eval_contain', which no run will log. Did you mean 'eval_contains'"),
        ("metrics.latency=my_code.plain", "metrics has one called 'latency'"),
        ("metrics.mine={_target_:my_code.plain,range:[1,0]}", "metrics.mine.range is [1, 0]"),
        ("metrics.mine=my_code.plain", "metrics.mine: my_code.plain wants 'messages', which nobody gives"),
        ("stats.level=95", "stats.level is 95. Allowed: from 0.5 to below 1."),
        ("stats.baseline=best", "stats.baseline is 'best'"),
        ("chunks=30", "chunks is 30, and there are 20 questions"),
        ("pipeline._target_=my_code.answr", "has no 'answr'. Did you mean 'answer'?"),
        ("+metrics.judge={_target_:rfflow.evals.judging.Judge,prompt:x}", "metrics.judge.generator is None"),
        ("dataset.columns={question:text}", "no question in row 0"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_asked(
    change: str, said: str, evaluate: Evaluate, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for word in PIPELINE if word != "--multirun"]
    words = [word for word in words if not word.startswith(f"{change.partition('=')[0]}=")]
    group = ["+prompt=question"] if change == "prompt=question" else [change]
    with pytest.raises(SystemExit) as left:
        evaluate(*words, *group)
    assert left.value.code
    assert said in capsys.readouterr().err
    assert not Path("calls.txt").exists()


def test_a_prompt_that_is_too_long_is_refused(
    evaluate: Evaluate, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["+recipe=prompts", "model=hub", f"model.name={tiny_model}", "dataset=questions", "metrics=qa"]
    words += ["objective.metric=eval_f1", "dataset.path=questions.jsonl", "prompt=question", "model.dtype=float32"]
    with pytest.raises(SystemExit):
        evaluate(*words, "prompt.system='" + "long " * 120 + "'")
    said = capsys.readouterr().err
    assert "20 of 20 prompts are too long for the model: that of question '" in said and "context of 512" in said
