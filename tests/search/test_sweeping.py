"""``hydra/sweeper=rfflow``: any Hydra application is searched; runs are told and replaced while the others train."""

from __future__ import annotations

import csv
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from lightning_fabric import Fabric
from omegaconf import DictConfig, OmegaConf
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial
from werkzeug.test import Client as WsgiClient

from rfflow.checkpointing.experiment_file import read
from rfflow.config.files import CONF
from rfflow.config.spec import ExperimentSpec, Objective, RunSpec
from rfflow.engine.engine import Engine
from rfflow.errors import ConfigError, EngineError
from rfflow.launch import start
from rfflow.runs.experiment import Callback, Experiment
from rfflow.runs.run import Run
from rfflow.search.samplers import SearchSpec
from rfflow.search.space import read_space
from rfflow.search.study import Search
from rfflow.tracking.runs_csv import RunsTable
from rfflow.worker.models.safetensors_io import SafetensorsIO
from tests.support.toy import STEPS_A_CHUNK, Dies, ToyTrainee, put, settle_at_once, toy_spec, write_at_once

pytestmark = pytest.mark.usefixtures("hydra_restore_singletons")

SAMPLERS = ["tpe", "gp", *(pytest.param(name, marks=pytest.mark.slow) for name in ("random", "cmaes", "nsga2"))]
PARABOLA = "x=interval(-2.0,2.0)"


class App:
    """A Hydra application of one number."""

    def __init__(self, folder: Path, launcher: str = "rfflow", **search: Any):
        self.folder = folder
        self.launcher = launcher
        self.search = {"sampler": "random", "n_trials": 4, "budget": None, "seed": 1, **search}
        self.seen: list[float] = []

    def sweep(self, *words: str, task: Callable[[DictConfig], Any] | None = None) -> list[JobReturn]:
        conf = self.folder / "conf"
        conf.mkdir(exist_ok=True, parents=True)
        config = {
            "defaults": [
                {"override hydra/launcher": self.launcher},
                {"override hydra/sweeper": "rfflow"},
                "_self_",
            ],
            "x": 0,
            "y": 0,
            "name": "app",
            "search": self.search,
            "objective": {"metric": "eval_loss", "direction": "minimize"},
            "hydra": {"sweep": {"dir": f"{self.folder}/out", "subdir": "runs/${hydra.job.num}"}},
        }
        (conf / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
        with initialize_config_dir(str(conf), version_base="1.3"):
            hydra = GlobalHydra.instance().hydra
            assert hydra is not None
            overrides = ["hydra.mode=MULTIRUN", *words]
            batches = hydra.multirun("config", task or self.parabola, overrides, with_log_configuration=False)
        return [result for batch in batches for result in batch]

    def parabola(self, cfg: DictConfig) -> float:
        self.seen.append(cfg.x)
        return float((cfg.x - 1) ** 2)

    @property
    def trials(self) -> list[FrozenTrial]:
        storage = JournalStorage(JournalFileBackend(str(self.folder / "out" / "study.journal")))
        return optuna.load_study(study_name="rfflow", storage=storage).get_trials()

    def states(self) -> list[str]:
        return [trial.state.name for trial in self.trials]


@pytest.mark.parametrize("name", ["rfflow", "basic"])
def test_any_application_is_searched_under_either_launcher(tmp_path: Path, name: str) -> None:
    app = App(tmp_path, name, sampler="tpe", n_trials=5, budget=20)
    results = app.sweep(PARABOLA)
    assert len(results) == len(app.seen) == len(set(app.seen)) == 20
    assert app.states() == ["COMPLETE"] * 20
    assert [trial.value for trial in app.trials] == [(x - 1) ** 2 for x in app.seen]
    assert fmean(abs(x - 1) for x in app.seen[5:]) < fmean(abs(x - 1) for x in app.seen[:5]) / 2, "it learns"


@pytest.mark.parametrize("name", ["cmaes", "gp", "grid", "nsga2", "random", "tpe"])
def test_an_application_that_takes_a_search_from_rfflow_gets_the_sweeper_with_it(tmp_path: Path, name: str) -> None:
    """Hydra's own would pass over the section; asked for by name, it stays."""
    (tmp_path / "config.yaml").write_text("x: 0\n")
    words = [f"hydra.searchpath=[file://{CONF}]", f"+search={name}"]
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        for sweeper, own in (("RfflowSweeper", []), ("BasicSweeper", ["hydra/sweeper=basic"])):
            cfg = compose("config", [*words, *own], return_hydra_config=True)
            assert cfg.hydra.sweeper._target_.endswith(f".{sweeper}") and cfg.search.sampler == name


@pytest.mark.parametrize("name", ["rfflow", "basic"])
def test_a_search_of_any_application_goes_on_in_its_directory(tmp_path: Path, name: str) -> None:
    """Killed in its second generation: that one is repeated, and nothing follows once the budget is spent."""

    def dies(cfg: DictConfig) -> float:
        if len(killed.seen) == 5:
            raise KeyboardInterrupt
        return killed.parabola(cfg)

    whole, killed = App(tmp_path / "whole", name, budget=12), App(tmp_path / "killed", name, budget=12)
    whole.sweep(PARABOLA)
    with pytest.raises(KeyboardInterrupt):
        killed.sweep(PARABOLA, task=dies)
    assert len(killed.sweep(PARABOLA)) == 8
    assert killed.seen == [*whole.seen[:5], *whole.seen[4:]]
    assert (
        killed.states() == ["COMPLETE"] * 12 and sorted(os.listdir(tmp_path / "killed/out/runs"), key=int)[-1] == "11"
    )
    assert killed.sweep(PARABOLA) == []


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_seed_asks_for_the_same_again(tmp_path: Path, sampler: str) -> None:
    seen = []
    for folder in ("one", "two"):
        app = App(tmp_path / folder, sampler=sampler, n_trials=3, budget=8)
        app.sweep(PARABOLA, "y=interval(0.0,1.0)")
        seen.append([tuple(trial.params.values()) for trial in app.trials])
    assert seen[0] == seen[1] and len(set(seen[0])) == 8


def test_commas_alone_stay_a_grid(tmp_path: Path) -> None:
    app = App(tmp_path)
    app.sweep("x=1,2,3", "y=1,2")
    assert app.seen == [1, 1, 2, 2, 3, 3] and not (tmp_path / "out" / "study.journal").exists()
    grid = App(tmp_path / "grid", sampler="grid")
    grid.sweep("x=choice(1,2)", "y=range(0,2)")
    assert grid.seen == [1, 1, 2, 2]
    with pytest.raises(ConfigError, match="a grid cannot go through"):
        grid.sweep(PARABOLA)


def test_nothing_is_tried_twice_and_a_small_space_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    app = App(tmp_path, n_trials=10)
    app.sweep("x=choice(1,2,3)", "y=choice(1,2)")
    assert sorted(app.seen) == [1, 1, 2, 2, 3, 3]
    assert "The space has 6 configurations, so 6 are trained." in caplog.text


def test_choices_reach_the_application_as_what_they_are(tmp_path: Path) -> None:
    seen = []
    app = App(tmp_path, n_trials=9)
    app.sweep("x=choice(1,1.5,true,a,'b, c',[1,d],{e:2})", task=lambda cfg: seen.append(cfg.x) or 0.0)
    assert sorted(map(repr, seen)) == sorted(map(repr, [1, 1.5, True, "a", "b, c", [1, "d"], {"e": 2}]))


def test_a_failure_and_a_nan_are_told_as_such_and_end_nothing(tmp_path: Path) -> None:
    def task(cfg: DictConfig) -> float:
        if cfg.x == 2:
            raise ValueError("too much")
        return float("nan") if cfg.x == 3 else float(cfg.x)

    app = App(tmp_path, "basic", n_trials=3, budget=5)
    app.sweep("x=choice(1,2,3,4,5)", task=task)
    by_x = {trial.params["x"]: trial.state.name for trial in app.trials if "duplicate" not in trial.user_attrs}
    assert by_x == {"1": "COMPLETE", "2": "FAIL", "3": "FAIL", "4": "COMPLETE", "5": "COMPLETE"}


def test_several_objectives(tmp_path: Path) -> None:
    objectives = [{"metric": "a", "direction": "minimize"}, {"metric": "b", "direction": "maximize"}]
    app = App(tmp_path, sampler="nsga2", n_trials=4, budget=8, objectives=objectives)
    app.sweep(PARABOLA, task=lambda cfg: [cfg.x, cfg.x**2])
    told = [value for trial in app.trials for value in trial.values]
    assert told == pytest.approx([x for t in app.trials for x in (t.params["x"], t.params["x"] ** 2)], rel=1e-5)


@pytest.mark.parametrize(
    "search, said",
    [
        ({"sampler": "tep"}, "Did you mean 'tpe'"),
        ({"n_trials": 0}, "search.n_trials is 0"),
        ({"budgett": 3}, "Did you mean 'budget'"),
        ({"seed": "abc"}, "search.seed is 'abc'. Allowed: a whole number"),
        ({"seed": -1}, "search.seed is -1. Allowed: a whole number"),
        ({"sampler": "cmaes", "objectives": [{"metric": "a"}, {"metric": "b"}]}, "one objective only"),
        ({"objectives": [{"metric": "a"}, {"metrc": "b"}]}, r"objectives\[1\]\.metrc is not .* mean 'metric'"),
        (
            {"objectives": [{"metric": "a", "direction": "up"}]},
            r"objectives\[0\]\.direction is 'up'. Allowed: min",
        ),
        ({"objectives": ["a"]}, r"objectives\[0\] is 'a'. Allowed: {metric"),
        ({"objectives": "a"}, "search.objectives is 'a'. Allowed: a list"),
    ],
)
def test_wrong_settings_are_said(tmp_path: Path, search: Mapping[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        App(tmp_path, **search).sweep(PARABOLA)
    with pytest.raises(ConfigError, match="nothing to search"):
        App(tmp_path).sweep("x=1")


# --- with runs in the engine ------------------------------------------------------------------------------------------


class Order(Callback):
    """Notes which run trained which chunk; drops op files at given moments."""

    def __init__(self, ops: Mapping[int, Mapping[str, Any]]):
        self.seen: list[int] = []
        self.ops = ops

    def on_chunk_end(self, experiment: Experiment, run: Run) -> None:
        self.seen.append(run.number)
        if len(self.seen) in self.ops:
            put(experiment.paths.control, f"{len(self.seen)}.yaml", self.ops[len(self.seen)])


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Order, list[Engine]]]:
    """Let the launcher make engines of runs that only count."""

    def let(policy: Any = None, ops: Mapping[int, Mapping[str, Any]] = {}, extra: Any = ()) -> Any:
        order, made = Order(ops), []

        def make(spec: ExperimentSpec, paths: Any, composer: Any) -> Engine:
            spec = replace(spec, accelerator="cpu", policy=policy, objective=Objective())
            spec = replace(spec, control=replace(spec.control, idle_timeout=0))
            fabric = Fabric(accelerator="cpu", devices=1, plugins=[SafetensorsIO()], callbacks=[*extra, order])
            made.append(Engine(spec, paths, fabric, composer, make_session=ToyTrainee))
            return made[-1]

        monkeypatch.setattr(start, "make_engine", make)
        return order, made

    settle_at_once(monkeypatch)
    return let


def run_of(cfg: DictConfig) -> RunSpec:
    """Longer for a larger y; fails where y is 9."""
    return toy_spec(chunks=int(cfg.y) or 2, lr=cfg.x, **({"fails_at": 0} if cfg.y == 9 else {}))


def test_a_run_that_ends_is_replaced_while_the_others_train(tmp_path: Path, engines: Any) -> None:
    """The first of three is short; the fourth begins before the long ones have ended."""
    order, made = engines()
    app = App(tmp_path, n_trials=3, budget=7)
    results = app.sweep(PARABOLA, "y=choice(2,6)", task=run_of)
    (engine,) = made
    assert len(engine.experiment.runs) == len(results) == 7
    lengths = [run.spec.chunks for run in engine.experiment.runs]
    assert order.seen.index(3) < max(i for i, run in enumerate(order.seen) if run < 3), lengths
    assert app.states() == ["COMPLETE"] * 7
    assert [trial.user_attrs["run"] for trial in app.trials] == list(range(7))
    assert [trial.value for trial in app.trials] == [result.return_value for result in results]
    assert [len(trial.intermediate_values) for trial in app.trials] == lengths


def test_a_seed_makes_the_same_trials_again_where_runs_are_replaced(tmp_path: Path, engines: Any) -> None:
    asked = []
    for folder in ("one", "two"):
        engines({"_target_": "rfflow.policies.Halving"})
        app = App(tmp_path / folder, sampler="tpe", n_trials=3, budget=8)
        app.sweep(PARABOLA, "y=choice(2,4)", task=run_of)
        asked.append([(trial.params, trial.state.name) for trial in app.trials])
    assert asked[0] == asked[1]


def test_a_search_goes_on_where_its_process_was_killed(
    tmp_path: Path, engines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No run is begun again, nothing is asked for twice, and the budget is that of the whole search."""
    order, _ = engines(extra=[Dies(11)])
    app = App(tmp_path, n_trials=3, budget=7)
    with pytest.raises(EngineError):
        app.sweep(PARABOLA, "y=choice(2,6)", task=run_of)
    before, trained = len(app.trials), list(order.seen)
    assert 3 < before < 7
    monkeypatch.setattr("rfflow.launch.resume._requested", tmp_path / "out")
    order, made = engines()
    app.sweep(PARABOLA, "y=choice(2,6)", task=run_of)
    runs = made[-1].experiment.runs
    assert [run.number for run in runs] == list(range(7)) and app.states() == ["COMPLETE"] * 7
    assert len(trained + order.seen) == sum(run.spec.chunks for run in runs)
    assert len({trial.params["x"] for trial in app.trials}) == 7


class Copies(Callback):
    """Leaves copies of the experiment's directory as a process that is killed at given chunks would."""

    def __init__(self, root: Path, at: Sequence[int]):
        self.root = root
        self.at = at
        self.done = 0

    def on_chunk_start(self, experiment: Experiment) -> None:
        if self.done in self.at:
            shutil.copytree(self.root / "out", self.root.with_name(f"killed-{self.done}") / "out")
        self.done += 1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_search_that_was_killed_asks_for_what_it_would_have_asked_for(
    tmp_path: Path, engines: Any, monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    """Runs that a policy stops are among them, and another that a person has cloned; all stand in the same order."""
    policy, clone = {"_target_": "rfflow.policies.Halving"}, {"op": "clone", "run": 0, "overrides": ["x=1.5"]}
    search = {"sampler": sampler, "n_trials": 3, "budget": 7}
    space = (PARABOLA, "y=int(interval(2,4))")

    def told(app: App) -> list[Any]:
        return [(t.number, t.params, t.state.name, t.values, t.intermediate_values, t.user_attrs) for t in app.trials]

    def order(app: App) -> list[Any]:
        header, *rows = csv.reader((app.folder / "out" / "runs.csv").read_text().splitlines())
        state = read(app.folder / "out" / "experiment.json")
        assert state is not None
        return [header, [row[:4] for row in rows], [(run.number, run.overrides) for run in state.runs]]

    write_at_once(monkeypatch)  # what is copied must not change meanwhile
    copies = Copies(tmp_path / "whole", at=(4, 9) if sampler == "tpe" else (8,))
    engines(policy, ops={3: clone}, extra=[copies, RunsTable()])
    whole = App(tmp_path / "whole", **search)
    whole.sweep(*space, task=run_of)
    assert copies.done > 9 and {"COMPLETE", "PRUNED"} <= set(whole.states())
    for at in copies.at:
        app = App(tmp_path / f"killed-{at}", **search)
        assert len(app.trials) < len(whole.trials)
        monkeypatch.setattr("rfflow.launch.resume._requested", app.folder / "out")
        engines(policy, extra=[RunsTable()])
        app.sweep(*space, task=run_of)
        assert told(app) == told(whole), at
        assert order(app) == order(whole), at


def test_what_was_asked_for_and_not_launched_is_launched_when_the_search_goes_on(tmp_path: Path) -> None:
    space = read_space(OverridesParser.create().parse_overrides([PARABOLA]))
    spec = SearchSpec("random", n_trials=2, budget=4, seed=7)
    asked = []
    for folder in ("whole", "killed"):
        search = Search(space, spec, tmp_path / folder / "study.journal", (Objective(),))
        first, second = search.ask(2)
        search.note(first.trial, "run", 0)
        if folder == "killed":
            search.study.ask()  # and killed again in the middle of asking for a third
            search = Search(space, spec, tmp_path / folder / "study.journal", (Objective(),))
            assert [one.run for one in search.earlier] == [0]
            (again,) = search.ask(1)
            assert again.overrides == second.overrides
        asked.append([first.overrides, second.overrides, *(one.overrides for one in search.ask(2))])
        assert search.ask(1) == []
    assert asked[0] == asked[1]


def test_it_is_said_where_a_search_cannot_go_on_as_it_would_have(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    space = read_space(OverridesParser.create().parse_overrides([PARABOLA]))
    for number, (spec, reason) in enumerate(
        [
            (SearchSpec("random", seed=None), "search.seed is null"),
            (SearchSpec({"_target_": "optuna.samplers.RandomSampler"}), "search.sampler is not one of rfflow's own"),
            (SearchSpec("random"), None),
        ]
    ):
        caplog.clear()
        for _ in range(2):
            assert "not those that it would have asked for" not in caplog.text
            Search(space, spec, tmp_path / f"{number}.journal", (Objective(),)).ask(1)
        assert (reason or "") in caplog.text and bool(reason) == ("would have asked for" in caplog.text)


def test_runs_that_a_policy_stops_are_replaced_and_told(tmp_path: Path, engines: Any) -> None:
    """Two of the first four stop after their first chunk; two others begin while the first two go on."""
    order, made = engines(policy={"_target_": "rfflow.policies.Halving"})
    app = App(tmp_path, n_trials=4, budget=8)
    app.sweep(PARABOLA, "y=4", task=run_of)
    states = app.states()
    assert len(made[0].experiment.runs) == 8 and set(states) == {"COMPLETE", "PRUNED"}
    stopped = [run.number for run in made[0].experiment.runs if run.state.value == "stopped"]
    assert [t.user_attrs["run"] for t in app.trials if t.state.name == "PRUNED"] == stopped
    assert {1, 3} < set(stopped) and order.seen[:8] == [0, 1, 2, 3, 0, 2, 4, 5], "nobody waits for runs 0 and 2"


def test_a_stopped_run_that_goes_on_after_it_was_told_is_told_again(tmp_path: Path, engines: Any) -> None:
    """Run 0 is stopped and replaced, then resumed by a person; both of its ends are in the study."""
    engines(ops={2: {"op": "stop", "run": 0}, 5: {"op": "resume", "run": 0}})
    app = App(tmp_path, n_trials=2, budget=3)
    app.sweep(PARABOLA, "y=4", task=run_of)
    told = [(trial.user_attrs["run"], trial.state.name) for trial in app.trials]
    assert sorted(told) == [(0, "COMPLETE"), (0, "PRUNED"), (1, "COMPLETE"), (2, "COMPLETE")]
    assert len({trial.params["x"] for trial in app.trials if trial.user_attrs["run"] == 0}) == 1


def test_a_policy_goes_on_where_the_process_was_killed(
    tmp_path: Path, engines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps no notes, so nothing of it needs to be saved."""
    policy = {"_target_": "rfflow.policies.Halving"}
    states = []
    for folder, extra in (("whole", ()), ("killed", (Dies(9),))):
        app = App(tmp_path / folder, n_trials=6)
        engines(policy, extra=extra)
        if extra:
            with pytest.raises(EngineError):
                app.sweep(PARABOLA, "y=4", task=run_of)
            monkeypatch.setattr("rfflow.launch.resume._requested", tmp_path / folder / "out")
        _, made = engines(policy)
        if extra or not states:
            app.sweep(PARABOLA, "y=4", task=run_of)
        states.append([(run.number, run.state.value, len(run.chunks)) for run in made[-1].experiment.runs])
    assert states[0] == states[1]
    assert {state for _, state, _ in states[0]} == {"stopped", "completed"}


def test_failed_runs_do_not_break_the_search(tmp_path: Path, engines: Any) -> None:
    engines()
    app = App(tmp_path, n_trials=2, budget=6)
    app.sweep(PARABOLA, "y=choice(2,9)", task=run_of)
    assert {(trial.params["y"], trial.state.name) for trial in app.trials} == {("2", "COMPLETE"), ("9", "FAIL")}


def test_a_run_that_diverged_is_told_as_failed(
    tmp_path: Path, engines: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It has trained to its end and logged NaN all the same; the chunks before that are known."""

    def advance(session: ToyTrainee) -> Any:
        pause = advance_toy(session)
        is_sick = session.run.number == 1 and session._step > STEPS_A_CHUNK
        return replace(pause, metrics={"eval_loss": math.nan}) if is_sick else pause

    advance_toy = ToyTrainee.advance
    monkeypatch.setattr(ToyTrainee, "advance", advance)
    _, made = engines()
    app = App(tmp_path, n_trials=3, budget=5)
    app.sweep(PARABOLA, "y=4", task=run_of)
    assert {run.state.value for run in made[0].experiment.runs} == {"completed"}
    told = [(trial.user_attrs["run"], trial.state.name, len(trial.intermediate_values)) for trial in app.trials]
    assert sorted(told) == [(number, *(("FAIL", 1) if number == 1 else ("COMPLETE", 4))) for number in range(5)]


def test_a_configuration_that_does_not_compose_is_told_as_failed(tmp_path: Path, engines: Any) -> None:
    """One of the later ones: those who train go on, and another takes its place."""

    def task(cfg: DictConfig) -> RunSpec:
        if cfg.y == 3:
            raise ConfigError("y=3 is impossible.")
        return run_of(cfg)

    engines()
    app = App(tmp_path, n_trials=1, budget=3, seed=4)
    app.sweep("y=choice(1,2,3)", task=task)
    assert sorted(
        (trial.params["y"], trial.state.name) for trial in app.trials if "duplicate" not in trial.user_attrs
    ) == [
        ("1", "COMPLETE"),
        ("2", "COMPLETE"),
        ("3", "FAIL"),
    ]


@pytest.mark.parametrize("sampler", ["nsga2", "tpe"])
def test_runs_are_weighed_by_several_objectives(tmp_path: Path, engines: Any, sampler: str) -> None:
    """A run that is done is told with the last values of both metrics, and the next are asked for meanwhile."""
    _, made = engines()
    objectives = [{"metric": "eval_loss", "direction": "minimize"}, {"metric": "loss", "direction": "maximize"}]
    app = App(tmp_path, sampler=sampler, n_trials=2, budget=5, objectives=objectives)
    app.sweep(PARABOLA, "y=choice(2,4,9)", task=run_of)
    runs = {run.number: run for run in made[0].experiment.runs}
    assert len(runs) == 5 and "COMPLETE" in app.states()
    for trial in app.trials:
        run = runs[trial.user_attrs["run"]]
        failed = trial.params["y"] == "9"
        assert trial.values == (None if failed else [run.metrics["eval_loss"], run.metrics["loss"]])


def test_where_nothing_is_evaluated_the_study_names_the_training_loss(
    tmp_path: Path, engines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And goes on by it in another process; a value of the other kind, which cannot be compared, is none."""
    advance_toy = ToyTrainee.advance

    def advance(session: ToyTrainee) -> Any:
        boundary = advance_toy(session)
        return replace(boundary, metrics={"loss": boundary.metrics["eval_loss"]})

    said: list[tuple[Any, ...]] = []
    monkeypatch.setattr(ToyTrainee, "advance", advance)
    monkeypatch.setattr("rfflow.search.sweeping.log.info", lambda *words: said.append(words))
    engines()
    app = App(tmp_path, n_trials=2)
    app.sweep(PARABOLA, task=run_of)
    assert app.states() == ["COMPLETE"] * 2
    assert said[-1][0].startswith("Best of the search") and said[-1][2] == "loss"
    space = read_space(OverridesParser.create().parse_overrides([PARABOLA]))
    again = Search(space, SearchSpec(n_trials=2), app.folder / "out" / "study.journal", [Objective()], "rfflow")
    assert again.study.metric_names == ["loss"]
    assert again.values({"loss": 1.0, "eval_loss": 2.0}) == [1.0] and again.values({"eval_loss": 2.0}) == [None]


def test_a_clone_joins_the_study_with_its_parent(tmp_path: Path, engines: Any) -> None:
    cold = {"op": "clone", "run": 0, "overrides": ["x=1.5"]}
    _, made = engines(ops={3: cold, 4: {**cold, "overrides": ["x=1.6"], "warm_start": True}})
    app = App(tmp_path, n_trials=2)
    app.sweep(PARABOLA, "y=4", task=run_of)
    clones = [trial for trial in app.trials if "parent" in trial.user_attrs]
    notes = [(trial.params, {k: trial.user_attrs[k] for k in ("parent", "run", "warm_start")}) for trial in clones]
    assert notes == [
        ({"x": 1.5}, {"parent": 0, "run": 2, "warm_start": False}),
        ({"x": 1.6}, {"parent": 0, "run": 3, "warm_start": True}),
    ]
    for trial in clones:
        curve = [chunk.metrics["eval_loss"] for chunk in made[0].experiment.run(trial.user_attrs["run"]).chunks]
        assert (trial.state.name, trial.value) == ("COMPLETE", curve[-1])
        assert list(trial.intermediate_values.values()) == curve


def test_a_clone_that_was_stopped_is_in_the_study_and_again_when_it_has_gone_on(tmp_path: Path, engines: Any) -> None:
    """As any other run: pruned with its curve, and, resumed, with its end."""
    stop = {"op": "stop", "run": 2}
    engines(ops={3: {"op": "clone", "run": 0, "overrides": ["x=1.5"]}, 6: stop, 9: {**stop, "op": "resume"}})
    app = App(tmp_path, n_trials=2, budget=4)
    app.sweep(PARABOLA, "y=4", task=run_of)
    told = [(t.state.name, len(t.intermediate_values), t.number) for t in app.trials if t.user_attrs["run"] == 2]
    assert [entry[:2] for entry in told] == [("PRUNED", 1), ("COMPLETE", 4)]
    (again,) = [trial for trial in app.trials if "resumed" in trial.user_attrs]
    assert (again.user_attrs["resumed"], again.user_attrs["parent"]) == (told[0][2], 0)


def test_optuna_dashboard_opens_the_study(tmp_path: Path, engines: Any) -> None:
    """What its pages ask for: the study, and the trials with their curves and with what is noted beside them."""
    optuna_dashboard = pytest.importorskip("optuna_dashboard", reason="of the extra dev")
    engines({"_target_": "rfflow.policies.Halving"}, ops={4: {"op": "clone", "run": 0, "overrides": ["x=1.5"]}})
    app = App(tmp_path, n_trials=3)
    app.sweep(PARABOLA, "y=4", task=run_of)
    journal = JournalStorage(JournalFileBackend(str(tmp_path / "out" / "study.journal")))
    pages = WsgiClient(optuna_dashboard.wsgi(journal))
    (study,) = pages.get("/api/studies").json["study_summaries"]
    assert (study["study_name"], study["directions"]) == ("rfflow", ["minimize"])
    shown = pages.get(f"/api/studies/{study['study_id']}").json
    assert shown["objective_names"] == ["eval_loss"]
    trials = [(t["state"], {note["key"]: note["value"] for note in t["user_attrs"]}) for t in shown["trials"]]
    assert [state for state, _ in trials] == [trial.state.name.title() for trial in app.trials]
    (clone,) = [notes for _, notes in trials if "parent" in notes]
    assert clone == {"run": "3", "parent": "0", "warm_start": "False", "overrides": '["x=1.5"]'}
    assert [len(trial["intermediate_values"]) for trial in shown["trials"]] == [
        len(trial.intermediate_values) for trial in app.trials
    ]
