"""A run's directory is its own: nobody else writes to it, and nobody removes it but who has made it."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rfflow.checkpointing import experiment_file
from rfflow.checkpointing.experiment_file import RunRecord, SavedExperiment
from rfflow.config.spec import CheckpointSpec
from rfflow.control.journal import Journal
from rfflow.engine import restoring
from rfflow.errors import ConfigError, EngineError
from rfflow.launch import resume, sweep
from rfflow.policies.record import read_record
from rfflow.results.runs_table import table_of
from rfflow.runs import places
from rfflow.runs.experiment import Callback, Experiment
from rfflow.runs.paths import ExperimentPaths, RunPaths
from rfflow.runs.places import MARK
from rfflow.runs.run import Run, RunState
from tests.checkpointing.test_starting import everything
from tests.launch.test_cli import Shell, rfflow
from tests.support.toy import Dies, put, quick_inbox, toy_engine, toy_spec

__all__ = ["quick_inbox", "rfflow"]

pytestmark = pytest.mark.usefixtures("hydra_restore_singletons")


def experiment(root: Path, *directories: str) -> Experiment:
    runs = [Run(n, toy_spec(), (), RunPaths(root / directory)) for n, directory in enumerate(directories)]
    return Experiment(None, ExperimentPaths(root), runs)  # type: ignore[arg-type]


def clone_place(found: Experiment, number: int) -> str:
    return places.place_for_clone(found, number).relative_to(found.paths.root).as_posix()


def test_clones_lie_beside_the_runs_by_number_or_apart_from_those_of_other_names(tmp_path: Path) -> None:
    assert clone_place(experiment(tmp_path, "runs/0", "runs/1"), 2) == "runs/2"
    assert clone_place(experiment(tmp_path, "runs/1", "runs/2"), 2) == "clones/2"
    assert clone_place(experiment(tmp_path, "1e-3/runs/0", "1e-4/runs/0"), 2) == "clones/2"


def test_a_clone_takes_nothing_that_is_there(tmp_path: Path) -> None:
    """Not a folder with something in it, a file, a link or another run's; an empty one is free."""
    found = experiment(tmp_path, "runs/0")
    (tmp_path / "runs/1").mkdir(parents=True)
    assert clone_place(found, 1) == "runs/1"
    (tmp_path / "runs/1/mine.txt").touch()
    (tmp_path / "runs/1-2").touch()
    (tmp_path / "runs/1-3").symlink_to(tmp_path / "elsewhere")
    assert clone_place(found, 1) == "runs/1-4"
    clone = Run(1, toy_spec(), (), RunPaths(tmp_path / "runs/1-4"), parent=0)
    assert places.place_for_clone(found, 1, [clone]).name == "1-5"


def test_only_what_was_made_for_a_clone_is_removed(tmp_path: Path) -> None:
    """And a copy of such a directory was not made for one."""
    made, mine, copy = (tmp_path / "runs" / name for name in ("7", "41", "backup"))
    places.make(made)
    for place in (made, mine):
        (place / "checkpoints").mkdir(parents=True)
        (place / "metrics.jsonl").touch()
    shutil.copytree(made, copy)
    for place in (made, mine, copy):
        places.remove(place)
    assert not made.exists() and (mine / "metrics.jsonl").exists() and (copy / "metrics.jsonl").exists()


def test_a_removal_that_is_cut_short_can_be_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "runs/7"
    places.make(place)
    (place / "checkpoints").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            places.remove(place)
    assert (place / MARK).exists()
    places.make(place)
    assert [path.name for path in place.iterdir()] == [MARK]


def test_leftovers_are_the_clones_that_nobody_knows_and_nothing_else(tmp_path: Path) -> None:
    names = ("runs/0", "runs/41", "runs/42", "clones/2", "clones/3")
    for name in names:
        place = tmp_path / name
        places.make(place) if name.startswith("clones") else place.mkdir(parents=True)
        (place / "metrics.jsonl").touch()
    runs = tuple(RunRecord(n, RunState.RUNNING, (), None, name) for n, name in enumerate(("runs/41", "", "clones/2")))
    restoring.remove_leftovers(tmp_path, SavedExperiment("x", 0.0, runs))
    assert [name for name in names if (tmp_path / name).exists()] == list(names[:-1])


class Cloning(Callback):
    """Asks for clones after the first chunk, and sees what becomes of the files of everybody."""

    def __init__(self, *overrides: str):
        self.overrides = overrides
        self.before: dict[str, bytes] = {}

    def on_chunk_end(self, experiment: Experiment, run: Run) -> None:
        if (run.number, len(run.chunks)) == (1, 1):
            for number, own in enumerate(self.overrides):
                put(experiment.paths.control, f"{number}.yaml", {"op": "clone", "run": 0, "overrides": [own]})


@pytest.mark.usefixtures("quick_inbox")
def test_a_refused_clone_touches_no_run_and_an_accepted_one_shares_with_none(tmp_path: Path) -> None:
    """Where jobs lie by their seeds, clone 2 would have lain where run 1 does."""
    engine = toy_engine(tmp_path, callbacks=[Cloning("breaks=config", "lr=5")])
    for number, seed in enumerate((1, 2)):
        engine.add(toy_spec(), number, (f"seed={seed}",), run_dir=tmp_path / f"runs/{seed}")
        (tmp_path / f"runs/{seed}/mine.txt").touch()
    engine.run()
    engine.close()
    assert [entry.outcome for entry in Journal(tmp_path / "ops.jsonl").read()] == ["refused", "applied"]
    roots = [run.paths.root.relative_to(tmp_path).as_posix() for run in engine.experiment.runs]
    assert roots == ["runs/1", "runs/2", "clones/2"]
    assert all((tmp_path / f"runs/{seed}/mine.txt").exists() for seed in (1, 2))
    assert {run.state for run in engine.experiment.runs} == {RunState.COMPLETED}


@pytest.mark.usefixtures("quick_inbox")
def test_runs_go_on_where_they_lay(tmp_path: Path) -> None:
    """Killed and gone on with: directories of any name, inside and outside, clones and clones of clones."""
    root, outside = tmp_path / "exp", tmp_path / "elsewhere"
    directories = [root / "runs/1", outside / "1e-4/runs/0"]

    def new() -> Any:
        engine = toy_engine(root, callbacks=[Cloning("lr=5"), Dies(5)], checkpoint=CheckpointSpec())
        for number, place in enumerate(directories):
            engine.add(toy_spec(), number, run_dir=place)
        return engine

    engine = new()
    with pytest.raises(EngineError, match="killed"):
        engine.run()
    engine.close()
    state = experiment_file.read(ExperimentPaths(root).state)
    assert state is not None
    assert [record.path(root) for record in state.runs] == [*directories, root / "clones/2"]
    assert state.runs[0].directory == "runs/1", "so that it can be moved"

    engine = toy_engine(root, checkpoint=CheckpointSpec())
    restoring.go_on(engine, state)
    for record in state.runs:
        run = engine.add(toy_spec(), record.number, run_dir=record.path(root))
        engine.restore(run, record)
    assert sum(len(run.chunks) for run in engine.experiment.runs) >= 3, "from their checkpoints, not from the start"
    engine.run()
    engine.close()
    assert [run.paths.root for run in engine.experiment.runs] == [*directories, root / "clones/2"]
    assert {run.state for run in engine.experiment.runs} == {RunState.COMPLETED}


def test_curves_are_found_wherever_a_run_lies(tmp_path: Path) -> None:
    """By a replay and in a notebook, by a replay also the configuration, without Hydra's."""
    from rfflow.tracking.metrics_log import MetricsLog
    from rfflow.tracking.runs_csv import RunsTable

    engine = toy_engine(tmp_path / "exp", callbacks=[RunsTable(), MetricsLog()], checkpoint=CheckpointSpec())
    for number, place in enumerate((tmp_path / "exp/007", tmp_path / "elsewhere")):
        engine.add(toy_spec(lr=number + 5), number, run_dir=place)
    engine.run()
    engine.close()
    moved = (tmp_path / "exp").rename(tmp_path / "moved")
    record = read_record(moved)
    assert [len(curve.metrics) for curve in record.curves] == [4, 4] and not record.silent
    assert [curve.config["lr"] for curve in record.curves] == [5, 6]
    assert record.objective == {"metric": "eval_loss", "direction": "minimize"}
    rows = table_of(moved).to_dict("records")
    assert [row["directory"] for row in rows] == ["007", str(tmp_path / "elsewhere")]
    assert [len(row["metrics"]) for row in rows] == [4, 4]


# --- what the launcher refuses, and what it remembers -----------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["hydra.sweep.subdir=same"],
        ["hydra.sweep.subdir=runs/${chunks}"],
        ["hydra.sweep.subdir=."],
        ["hydra.sweep.dir=${name}", "hydra.sweep.subdir=../there"],
    ],
)
def test_runs_that_would_write_into_one_directory_are_refused(rfflow: Shell, words: list[str]) -> None:
    said = rfflow("+recipe=sft", "--multirun", "lr=1e-3,1e-4", *words)
    assert (rfflow.status, rfflow.engines) == (1, [])
    assert "Runs 0 and 1 would both write into " in said and "hydra.sweep.subdir=runs/${hydra.job.num} does" in said


def test_a_link_does_not_make_two_of_one_directory(rfflow: Shell) -> None:
    Path("a").mkdir()
    Path("b").symlink_to("a")
    said = rfflow("+recipe=sft", "--multirun", "+place=a,b", "hydra.sweep.dir=.", "hydra.sweep.subdir=${place}")
    assert rfflow.status == 1 and "Runs 0 and 1 would both write into" in said


def test_runs_that_are_told_apart_lie_where_they_were_put(rfflow: Shell) -> None:
    words = ["hydra.sweep.dir=out/${lr}", "hydra.sweep.subdir=s${seed}"]
    said = rfflow("+recipe=sft", "--multirun", "lr=1e-3,1e-4", "seed=1,2", *words)
    assert rfflow.status == 0, said
    roots = [run.paths.root.relative_to(Path.cwd()).as_posix() for run in rfflow.engines[0].runs]
    assert roots == ["out/0.001/s1", "out/0.001/s2", "out/0.0001/s1", "out/0.0001/s2"]


@pytest.mark.parametrize("file", ["metrics.jsonl", "checkpoints/step-1/toy.json"])
@pytest.mark.parametrize(
    ("words", "place"),
    [
        (["--multirun", "hydra.sweep.dir=exp", "hydra.sweep.subdir=s${seed}"], "exp/s42"),
        (["hydra.run.dir=exp"], "exp/runs/0"),
    ],
)
def test_a_run_is_not_put_where_another_has_been(rfflow: Shell, file: str, words: list[str], place: str) -> None:
    (Path(place) / file).parent.mkdir(parents=True)
    (Path(place) / file).touch()
    said = rfflow("+recipe=sft", *words)
    assert (rfflow.status, rfflow.engines) == (1, [])
    assert f"Run 0 would write into {place}, which holds another run: {file.partition('/')[0]} is there." in said


def test_nor_where_another_experiment_is(rfflow: Shell, tmp_path: Path) -> None:
    """By a directory that is another for each job; Hydra has not written there either."""
    Path("out/0.001/one").mkdir(parents=True)
    Path("out/0.001/one/experiment.json").write_text("{}")
    before = everything(tmp_path / "out/0.001")
    words = ["hydra.sweep.dir=out/${lr}", "hydra.sweep.subdir=one"]
    said = rfflow("+recipe=sft", "--multirun", "lr=1e-3,1e-4", *words)
    assert rfflow.status == 1 and "out/0.001/one, which holds another run: experiment.json is there" in said
    assert everything(tmp_path / "out/0.001") == before


def test_what_a_refused_experiment_has_left_is_in_nobodys_way(rfflow: Shell) -> None:
    """It may be started again in the same place, once what was wrong is mended."""
    Path("exp/runs/0/checkpoints").mkdir(parents=True)
    said = rfflow("+recipe=sft", "hydra.run.dir=exp")
    assert rfflow.status == 0, said


def test_a_resumed_run_goes_where_it_was_whatever_the_configuration_says_now(
    rfflow: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its place is remembered: resume= gives one directory for all, and a resolver may have another answer now."""
    runs = tuple(
        RunRecord(n, RunState.RUNNING, (), (f"lr={n}",), str(tmp_path / f"out/{n}/x") if n else "there/0")
        for n in range(2)
    )
    monkeypatch.setattr(resume, "state_of", lambda root: SavedExperiment("x", 0.0, runs))
    monkeypatch.setattr(restoring, "go_on", lambda *_: None)
    monkeypatch.setattr(sweep, "restore_runs", lambda *_: None)
    said = rfflow("+recipe=sft", "--multirun", "lr=1e-3,1e-4,1e-5", "hydra.sweep.dir=exp")
    assert rfflow.status == 0, said
    (engine,) = rfflow.engines
    roots = [run.paths.root.relative_to(tmp_path).as_posix() for run in engine.runs]
    assert roots == ["exp/there/0", "out/1/x", "exp/runs/2"]
    assert all((tmp_path / root / ".hydra/overrides.yaml").exists() for root in roots)


def test_a_clone_is_composed_where_it_lies(rfflow: Shell, tmp_path: Path) -> None:
    """The first time and when it goes on: what asks Hydra for its directory gets that one."""
    rfflow("+recipe=sft", "+mine=${hydra:runtime.output_dir}", "hydra.run.dir=exp")
    (engine,) = rfflow.engines
    composer: Any = engine.composer
    for place in (tmp_path / "exp/clones/1", tmp_path / "outside/1"):
        spec, _, hydra = composer.compose_clone(engine.runs[0], ["lr=1"], 1, place)
        again, _, _ = composer.compose_again(composer.overrides_of(1), 1, place)
        assert spec.config["mine"] == again.config["mine"] == hydra.hydra.runtime.output_dir == str(place)


def test_a_resolver_is_asked_once_for_a_place(rfflow: Shell) -> None:
    from omegaconf import OmegaConf

    calls: list[int] = []
    OmegaConf.register_new_resolver("another", lambda: calls.append(0) or f"n{len(calls)}", replace=True)
    rfflow("+recipe=sft", "--multirun", "lr=1e-3,1e-4", "hydra.sweep.subdir=${another:}")
    (engine,) = rfflow.engines
    assert len({run.paths.root for run in engine.runs}) == 2
    assert all((run.paths.root / ".hydra").is_dir() for run in engine.runs)


def test_saved_places_are_found_wherever_the_experiment_was_moved() -> None:
    record: Any = SimpleNamespace(directory="runs/0")
    assert RunRecord.path(record, Path("/new")) == Path("/new/runs/0")
    record.directory = "/abs/1"
    assert RunRecord.path(record, Path("/new")) == Path("/abs/1")


def test_check_apart_names_who_is_there() -> None:
    there = experiment(Path("/x"), "runs/0").runs
    with pytest.raises(ConfigError, match=r"^Runs 0 and 5 would both write into /x/runs/0"):
        places.check_apart({5: Path("/x/runs/0")}, there)
