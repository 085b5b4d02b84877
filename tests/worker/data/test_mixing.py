"""Several files and mixtures: the rows that TRL and `datasets` would make of them, in their order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import concatenate_datasets, interleave_datasets, load_dataset
from trl import DatasetMixtureConfig, get_dataset
from trl.scripts.utils import DatasetConfig

from rfflow.config.spec import DatasetSpec, TrainerSpec
from rfflow.errors import ConfigError
from rfflow.runs.run import RunState
from rfflow.worker.data.rows import Data, fingerprint, load_data
from tests.support.plain import Outcome
from tests.support.tiny import make_rows, run_spec, write_jsonl
from tests.worker.training.test_exactness import train_together

SFT = TrainerSpec("trl.SFTTrainer", "trl.SFTConfig")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three files of 5, 12 and 20 rows."""
    folder = tmp_path_factory.mktemp("files")
    rows = make_rows(37)
    parts = {"a": rows[:5], "b": rows[5:17], "c": rows[17:]}
    return [str(write_jsonl(folder / f"{name}.jsonl", part)) for name, part in parts.items()]


def load(**settings: Any) -> Data:
    return load_data(DatasetSpec(**settings), 42, SFT)


def refused(**settings: Any) -> str:
    with pytest.raises(ConfigError) as error:
        load(**settings)
    return str(error.value)


def plain(file: str) -> datasets.Dataset:
    return load_dataset("json", data_files=file, split="train")


def test_files_are_read_one_after_the_other(files: list[str]) -> None:
    a, _, c = files
    assert load(path=tuple(files)).train.to_list() == make_rows(37)
    folder = Path(a).parent
    assert load(path=f"{folder}/*.jsonl").train.to_list() == make_rows(37)
    assert load(path=f"{folder}/**/[ac].jsonl").train.to_list() == make_rows(37)[:5] + make_rows(37)[17:]
    assert load(path=(c, f"{folder}/[ab]*")).train.to_list() == make_rows(37)[17:] + make_rows(37)[:17]
    data = load(path=tuple(files), eval_path={"one": (a, c), "other": f"{folder}/b*"}, max_eval_samples=7)
    assert {name: len(rows) for name, rows in data.evaluation_sets().items()} == {"one": 7, "other": 7}
    assert "nothing matches the pattern. In" in refused(path=f"{folder}/*.csv")
    assert "a.jsonl, b.jsonl, c.jsonl" in refused(path=f"{folder}/*.csv")
    assert "dataset.eval_path.hard is" in refused(path=a, eval_path={"hard": "*.csv"})


def test_what_is_read_twice_is_said(files: list[str], caplog: pytest.LogCaptureFixture) -> None:
    a, b, _ = files
    folder = Path(a).parent
    load(path=(a, b), eval_path=files[2])
    assert not caplog.records
    load(path=(a, f"{folder}/[ab]*"), eval_path={"x": b, "y": files[2]})
    assert [record.getMessage() for record in caplog.records] == [
        f"dataset.path: read more than once: {a}",
        f"dataset.eval_path: evaluated on, and trained on as well: {b}",
    ]


def test_a_row_is_named_by_its_file(files: list[str], tmp_path: Path) -> None:
    bad = write_jsonl(tmp_path / "bad.jsonl", [*make_rows(2), {"prompt": "why", "completion": None}])
    message = refused(path=(files[0], str(bad)))
    assert f"1 of 8 rows have nothing in 'completion', first row 2 (from 0) of {bad}, line 3." in message


def test_columns_that_differ_are_refused_with_both_files(files: list[str], tmp_path: Path) -> None:
    other = str(write_jsonl(tmp_path / "other.jsonl", [{"prompt": "why", "answer": "so"}]))
    message = refused(path=(files[0], other))
    assert (
        f"{files[0]} and {other} differ in their columns: only {files[0]} has completion; only {other} has" in message
    )
    lists = str(write_jsonl(tmp_path / "lists.jsonl", [{"prompt": "why", "completion": ["so"]}]))
    assert "differ in the column 'completion'" in refused(path=(files[0], lists))
    numbers = str(write_jsonl(tmp_path / "numbers.jsonl", [{"prompt": "1+1=", "completion": 2}]))
    assert load(path=(files[0], numbers)).train["completion"][-1] == "2"
    spare = str(write_jsonl(tmp_path / "spare.jsonl", [{"prompt": "why", "completion": "so", "id": 7}]))
    assert "only " in refused(path=(files[0], spare))
    for paths, said in (((files[0], spare), "differ in their columns"), ((files[0], lists), "differ in the column")):
        assert said in refused(
            path=paths, probabilities=(0.5, 0.5), formatting_func="tests.worker.data.test_mixing.same"
        )
    assert len(load(path=(files[0], spare), columns={"prompt": "prompt", "completion": "completion"}).train) == 6


def test_messages_of_two_files_may_have_different_keys(tmp_path: Path) -> None:
    first = [{"messages": [{"role": "user", "content": "a"}]}] * 2
    second = [{"messages": [{"role": "user", "content": "007", "name": "b"}]}]
    paths = [str(write_jsonl(tmp_path / f"{i}.jsonl", rows)) for i, rows in enumerate((first, second))]
    assert load(path=tuple(paths)).train.to_list() == first + second


def test_fractions_are_those_of_trl(files: list[str]) -> None:
    for fractions in ((1, 1, 1), (0.7, 0.2, 0.1), (0, 3, 1), (None, None, None)):
        theirs = get_dataset(
            DatasetMixtureConfig(
                datasets=[
                    DatasetConfig(path="json", data_files=file, fraction=fraction)
                    for file, fraction in zip(files, fractions, strict=True)
                ]
            )
        )["train"]
        parts = tuple(DatasetSpec(path=file, fraction=each) for file, each in zip(files, fractions, strict=True))
        assert load(datasets=parts).train.to_list() == theirs.to_list(), fractions


@pytest.mark.parametrize("probabilities", [None, (0.6, 0.3, 0.1)])
@pytest.mark.parametrize("strategy", ["first_exhausted", "all_exhausted", "all_exhausted_without_replacement"])
def test_probabilities_are_those_of_datasets(files: list[str], strategy: str, probabilities: tuple | None) -> None:
    settings = {"probabilities": probabilities, "stopping_strategy": strategy}
    for seed in (None, 7) if probabilities else (None,):
        theirs = interleave_datasets(
            [plain(file) for file in files],
            probabilities,
            seed=42 if seed is None else seed,
            stopping_strategy=strategy,
        )
        ours = load(path=tuple(files), seed=seed, **settings).train
        assert ours.to_list() == theirs.to_list()
        assert (
            load(datasets=tuple(DatasetSpec(path=f) for f in files), seed=seed, **settings).train.to_list()
            == ours.to_list()
        )
        assert load(path=tuple(files), max_samples=4, seed=seed, **settings).train.to_list() == ours.to_list()[:4]


def test_no_row_is_trained_and_evaluated_on(files: list[str]) -> None:
    """Rows are held out before they are mixed, which may take one twice."""
    settings = {"path": tuple(files), "probabilities": (0.1, 0.1, 0.8), "stopping_strategy": "all_exhausted"}
    data = load(**settings, eval_size=9)
    assert isinstance(data.eval, datasets.Dataset)
    trained, held_out = set(data.train["prompt"]), data.eval["prompt"][:]
    assert len(held_out) == len(set(held_out)) == 9
    assert trained.isdisjoint(held_out) and len(trained) == 28
    assert load(path=tuple(files), eval_size=9).eval.to_list() == data.eval.to_list()


def test_each_data_set_may_have_its_columns_and_function(files: list[str], tmp_path: Path) -> None:
    asked = str(write_jsonl(tmp_path / "asked.jsonl", [{"q": "why", "a": "so"}, {"q": "how", "a": "thus"}]))
    told = tmp_path / "told.csv"
    told.write_text("prompt,completion\na,007\n")
    shout = {"_target_": "tests.worker.data.test_mixing.shout"}
    parts = (
        DatasetSpec(path=asked, columns={"q": "prompt", "a": "completion"}),
        DatasetSpec(path=str(told), formatting_func=shout),
    )
    data = load(datasets=parts)
    assert data.train["prompt"][:] == ["why", "how", "A"] and data.train["completion"][:] == ["so", "thus", "007"]
    assert load(datasets=parts, eval_path=files[0], formatting_func=shout).eval["prompt"][0].startswith("WHAT IS")
    wrong = refused(datasets=(parts[0], replace(parts[1], formatting_func=None, columns={"promt": "prompt"})))
    assert "no column 'promt' in" in wrong and "told.csv" in wrong
    assert "dataset.datasets[1].path is 'none.jsonl': no such file" in refused(
        datasets=(parts[0], DatasetSpec(path="none.jsonl"))
    )


def same(row: dict[str, str]) -> dict[str, str]:
    return row


def shout(row: dict[str, str]) -> dict[str, str]:
    return {"prompt": row["prompt"].upper(), "completion": row["completion"]}


def test_a_fingerprint_knows_order_and_sets(files: list[str]) -> None:
    """By which a resume sees that rows are others."""
    a, b, _ = files
    prints = [
        fingerprint(load(**settings))
        for settings in (
            {"path": (a, b)},
            {"path": (b, a)},
            {"path": (a, b), "probabilities": (0.5, 0.5)},
            {"path": a, "eval_path": b},
            {"path": a, "eval_path": {"x": b}},
            {"path": a, "eval_path": {"y": b}},
            {"path": a, "eval_path": {"x": b, "y": b}},
        )
    ]
    assert len(set(prints)) == len(prints)
    assert fingerprint(load(path=(a, b))) == prints[0]


def test_a_mixture_ends_as_in_trl_alone(files: list[str], tiny_model: Path, tmp_path: Path, monkeypatch) -> None:
    """Weights and log history, bit for bit."""
    mixture = DatasetSpec(path=tuple(files[1:]), probabilities=(0.5, 0.5), stopping_strategy="all_exhausted")
    variant = replace(run_spec(tiny_model, files[0], chunks=2), dataset=mixture)
    ((run,), together) = train_together([variant], tmp_path / "together")
    assert run.state is RunState.COMPLETED
    theirs = interleave_datasets(
        [plain(file) for file in files[1:]], [0.5, 0.5], seed=42, stopping_strategy="all_exhausted"
    )
    monkeypatch.setattr("tests.support.plain.load_dataset", lambda *_, **__: concatenate_datasets([theirs]))
    from tests.support.plain import train_alone

    alone: Outcome = train_alone(replace(variant, dataset=DatasetSpec(path="of the mixture")), tmp_path / "alone")
    assert not together["0"].differences(alone)
