"""The command line as people type it; the engine behind it trains nothing here."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.errors import ConfigCompositionException

from rfflow import __main__ as cli
from rfflow.checkpointing.disk import resume_command
from rfflow.errors import ConfigError
from rfflow.launch import start
from tests.support.stub_engine import StubEngine

pytestmark = pytest.mark.usefixtures("hydra_restore_singletons")


class Shell:
    """Runs a command in this process (one of its own takes a second) and keeps the engines it made."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
        self.engines: list[StubEngine] = []
        self._capsys = capsys
        self._monkeypatch = monkeypatch
        monkeypatch.setattr(start, "make_engine", self._make_engine)
        self.status = 0

    def _make_engine(self, *args: object) -> StubEngine:
        self.engines.append(StubEngine(*args))  # type: ignore[arg-type]
        return self.engines[-1]

    def __call__(self, *words: str) -> str:
        self._monkeypatch.setattr(sys, "argv", ["rfflow", *words])
        self.status = 0
        try:
            cli.main()
        except SystemExit as stop:
            self.status = int(stop.code or 0)
        out, err = self._capsys.readouterr()
        return out + err

    @property
    def labels(self) -> list[str]:
        return [run.label for engine in self.engines for run in engine.runs]


@pytest.fixture
def rfflow(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Shell:
    monkeypatch.chdir(tmp_path)
    return Shell(capsys, monkeypatch)


@pytest.mark.parametrize(
    "line",
    [
        "+recipe=sft --multirun lr=1e-3,1e-4",  # as the README has it
        "--multirun +recipe=sft lr=1e-3,1e-4",
        "+recipe=sft lr=1e-3,1e-4 --multirun",
        "+recipe=sft -m lr=1e-3,1e-4",
        "+recipe=sft hydra.mode=MULTIRUN lr=1e-3,1e-4",
    ],
)
def test_flags_may_stand_anywhere(rfflow: Shell, line: str) -> None:
    rfflow(*line.split())
    assert rfflow.status == 0
    assert rfflow.labels == ["lr=0.001", "lr=0.0001"]
    (engine,) = rfflow.engines
    assert [run.spec.trainer.args["learning_rate"] for run in engine.runs] == [1e-3, 1e-4]


def test_an_experiment_lies_under_outputs(rfflow: Shell) -> None:
    rfflow("+recipe=sft", "--multirun", "lr=1e-3,1e-4")
    (root,) = Path("outputs/sft").iterdir()
    assert rfflow.engines[0].paths.root == root
    assert [run.paths.root for run in rfflow.engines[0].runs] == [
        root.absolute() / "runs/0",
        root.absolute() / "runs/1",
    ]
    files = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    assert {"multirun.yaml", "runs/0/.hydra/config.yaml", "runs/1/.hydra/overrides.yaml"} <= files
    assert not any(name.endswith(".log") for name in files), "the engine writes run.log, Hydra nothing beside it"


@pytest.mark.parametrize(
    ("words", "key"), [(("--multirun", "lr=1e-3,1e-4"), "hydra.sweep.dir"), (("lr=1e-3",), "hydra.run.dir")]
)
def test_a_directory_that_cannot_be_made_is_said(rfflow: Shell, words: tuple[str, ...], key: str) -> None:
    Path("file").touch()
    said = rfflow("+recipe=sft", *words, f"{key}=file/mine")
    assert (rfflow.status, rfflow.engines) == (1, [])
    assert "file/mine cannot be written to: " in said and f"Another directory: {key}=" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "line",
    [
        "+recipe=sft name=NAME",
        "+recipe=sft --multirun lr=1e-3,1e-4 name=NAME",
        "+recipe=sft hydra.run.dir=out/NAME",
        "+recipe=sft --multirun lr=1e-3,1e-4 hydra.sweep.dir=out/NAME",
        "+recipe=sft --multirun lr=1e-3,1e-4 hydra.sweep.subdir=NAME",
        "new NAME",
        "ctl status --control NAME",
    ],
)
def test_a_path_that_is_too_long_is_said(rfflow: Shell, line: str) -> None:
    """As ``hydra.sweep.subdir=${hydra.job.override_dirname}`` soon is."""
    said = rfflow(*line.replace("NAME", 300 * "x").split())
    assert (rfflow.status, rfflow.engines) == (1, [])
    assert "xxx… is too long: 300 bytes. File systems take 255 in a name, 4096 in a path. The paths of an" in said
    assert not any(word in said for word in ("Traceback", "HYDRA_FULL_ERROR", "UserWarning")) and len(said) < 400


def test_an_experiment_that_is_not_there_to_go_on_with_names_one_that_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("2026-01-01_10-00-00", "2026-01-02_10-00-00"):
        _write(Path("outputs/sft", folder, "experiment.json"), "{}")
    for given, named in (
        ("outputs/sft/2026-01-01_10-00-01", "Did you mean resume=outputs/sft/2026-01-01"),
        ("x", "02_10-00"),
    ):
        with pytest.raises(SystemExit, match=named):
            monkeypatch.setattr(sys, "argv", ["rfflow", f"resume={given}"])
            cli.main()


@pytest.mark.parametrize("mode", [(), ("--multirun",)])
def test_one_of_several_processes_begins_nothing(
    rfflow: Shell, mode: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a directory is made nor anything loaded; what only shows something is not refused."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match="rfflow was started as 2 processes: WORLD_SIZE is 2"):
        monkeypatch.setattr(sys, "argv", ["rfflow", "+recipe=sft", *mode])
        cli.main()
    assert not list(Path().iterdir())
    assert "lr: 0.0002" in rfflow("+recipe=sft", "--cfg", "job")


def test_several_keys_and_groups_are_swept(rfflow: Shell) -> None:
    rfflow("+recipe=sft", "--multirun", "peft=lora_small,lora_large", "lr=1e-3,1e-4", "trainer.args.warmup_steps=0,5")
    runs = rfflow.engines[0].runs
    seen = {(run.spec.peft["r"], run.spec.trainer.args["learning_rate"]) for run in runs if run.spec.peft}
    assert (len(runs), len(seen)) == (8, 4)
    assert runs[0].label == "peft=lora_small lr=0.001 trainer.args.warmup_steps=0"


def test_the_libraries_arguments_go_by_their_own_names(rfflow: Shell) -> None:
    """None of these keys stands in conf/."""
    rfflow(
        "+recipe=sft",
        "trainer.args.warmup_steps=10",
        "peft.target_modules=[q_proj,v_proj]",
        "peft.use_rslora=true",
        "model.attn_implementation=eager",
        "trainer.data_collator._target_=my.Collator",
        "dataset.split=test",
    )
    spec = rfflow.engines[0].runs[0].spec
    assert spec.trainer.args["warmup_steps"] == 10
    assert spec.peft is not None and spec.peft["use_rslora"] is True
    assert spec.peft["target_modules"] == ["q_proj", "v_proj"]
    assert spec.model.kwargs == {"dtype": "float32", "attn_implementation": "eager"}
    assert spec.trainer.kwargs == {"data_collator": {"_target_": "my.Collator"}}
    assert spec.dataset.split == "test"


def test_runs_that_see_the_rows_in_different_orders_are_told_so(rfflow: Shell) -> None:
    for line, is_said in (("seed=1,2", True), ("lr=1e-3,1e-4", False), ("seed=1,2 trainer.args.data_seed=3", False)):
        said = " ".join(rfflow("+recipe=sft", "--multirun", *line.split()).split())
        assert (rfflow.status, len(rfflow.engines[-1].runs)) == (0, 2)
        assert ("The runs have different trainer.args.data_seed (1, 2)" in said) is is_said


def test_activation_checkpointing_goes_by_its_old_name_too(rfflow: Shell) -> None:
    """conf/ says false by the new one, and transformers would go by that without a word."""
    rfflow("+recipe=sft", "--multirun", "trainer.args.gradient_checkpointing=true,false")
    said = [run.spec.trainer.args for run in rfflow.engines[0].runs]
    assert [args["activation_checkpointing"] for args in said] == [True, False]
    assert not any("gradient_checkpointing" in args for args in said)
    old, new = "trainer.args.gradient_checkpointing=false", "trainer.args.activation_checkpointing=true"
    assert "two names of the same. Say one." in rfflow("+recipe=sft", old, new)


def test_rows_to_hold_out_beside_rows_to_evaluate_on_are_refused(rfflow: Shell) -> None:
    """Only where somebody has asked for them: configurations have a size of their own."""
    rows = ["+recipe=sft", "dataset=local", "dataset.path=a.jsonl", "dataset.eval_path=b.jsonl"]
    said = rfflow(*rows, "dataset.eval_size=5")
    assert "dataset.eval_size is 5, and nothing would read it: the rows to evaluate on are those of dataset.ev" in said
    assert rfflow.status == 1
    rfflow(*rows)
    rfflow(*rows, "dataset.eval_size=0")
    assert len(rfflow.engines) == 2


def test_one_seed_is_every_runs_and_arguments_override_it(rfflow: Shell) -> None:
    rfflow("+recipe=sft", "--multirun", "seed=7", "lr=1e-3,1e-4", "trainer.args.data_seed=${seed},3")
    seeds = [(run.spec.trainer.args["seed"], run.spec.trainer.args["data_seed"]) for run in rfflow.engines[0].runs]
    assert seeds == [(7, 7), (7, 3)] * 2
    rfflow("+recipe=sft")
    args = rfflow.engines[1].runs[0].spec.trainer.args
    assert (args["seed"], args["data_seed"]) == (42, 42)


@pytest.mark.parametrize("callbacks", ["my.Callback", "[my.Callback]", "[{_target_: my.Callback}, null]"])
def test_trainer_callbacks_are_given_in_several_ways(rfflow: Shell, callbacks: str) -> None:
    rfflow("+recipe=sft", f"trainer.callbacks={callbacks}")
    assert rfflow.engines[0].runs[0].spec.trainer.callbacks == ({"_target_": "my.Callback"},)


def test_a_sweeper_in_yaml_reaches_them_too(rfflow: Shell, tmp_path: Path) -> None:
    """A user's recipe that turns a plain command into a sweep."""
    _write(
        tmp_path / "mine/recipe/warm.yaml",
        "# @package _global_\n"
        "hydra: {mode: MULTIRUN, sweeper: {params: {trainer.args.warmup_steps: '0,5', peft: 'lora,none'}}}\n",
    )
    rfflow("+recipe=warm", "--config-dir", str(tmp_path / "mine"))
    runs = rfflow.engines[0].runs
    assert [run.spec.trainer.args["warmup_steps"] for run in runs] == [0, 0, 5, 5]
    assert [run.spec.peft is None for run in runs] == [False, True] * 2


def test_a_single_run_is_an_experiment_of_one(rfflow: Shell) -> None:
    rfflow("+recipe=sft", "lr=1e-3")
    (engine,) = rfflow.engines
    (root,) = Path("outputs/sft").iterdir()
    assert engine.paths.root == root
    assert [run.paths.root for run in engine.runs] == [root.absolute() / "runs/0"]
    assert (rfflow.labels, engine.closed, rfflow.status) == (["+recipe=sft lr=1e-3"], 1, 0)


@pytest.mark.parametrize("hydra_launcher", ["basic", "rfflow"])
def test_another_launcher_trains_each_run_by_itself(rfflow: Shell, hydra_launcher: str) -> None:
    rfflow("+recipe=sft", "-m", "lr=1e-3,1e-4", f"hydra/launcher={hydra_launcher}")
    assert len(rfflow.engines) == {"basic": 2, "rfflow": 1}[hydra_launcher]


def test_without_a_recipe_the_defaults_are_trained(rfflow: Shell) -> None:
    rfflow("chunks=4")
    assert rfflow.engines[0].spec.name == "experiment"


def test_a_single_run_can_be_cloned(rfflow: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(engine: StubEngine) -> None:
        spec, label, hydra = engine.composer.compose_clone(engine.runs[0], ("lr=5e-4", "peft.r=2"), 1)
        assert (label, hydra.hydra.job.num) == (("lr=5e-4", "peft.r=2"), 1)
        assert spec.trainer.args["learning_rate"] == 5e-4
        assert (engine.paths.root / "runs/1/.hydra/config.yaml").exists()

    monkeypatch.setattr(StubEngine, "run", run)
    said = rfflow("+recipe=sft", "lr=1e-3")
    assert rfflow.status == 0, said


def test_the_users_own_modules_are_found(rfflow: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The console script does not put the current directory on the path, and a callback of theirs lies there."""
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    (tmp_path / "beside_the_command.py").touch()
    rfflow("+recipe=sft", "+callbacks.mine._target_=beside_the_command.Notifier")
    assert importlib.util.find_spec("beside_the_command") is not None


def test_ctl_is_another_command(rfflow: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    from rfflow.control import ctl

    monkeypatch.setattr(ctl, "main", lambda words: 3 if words == ["clone", "0", "lr=1e-3"] else 0)
    rfflow("ctl", "clone", "0", "lr=1e-3")
    assert rfflow.status == 3


def test_a_failed_single_run_ends_with_status_1(rfflow: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def make_engine(*args: object) -> StubEngine:
        return StubEngine(*args, failing={0: ValueError("loss is NaN")})  # type: ignore[arg-type]

    monkeypatch.setattr(start, "make_engine", make_engine)
    said = rfflow("+recipe=sft")
    assert rfflow.status == 1
    assert "failed: ValueError: loss is NaN\nIts trace: outputs/sft/" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "line, hint",
    [
        ("lrr=3", "There is no lrr. Did you mean lr=3?"),
        ("--multirun lrr=3,4", "There is no lrr. Did you mean lr=3?"),
        ("engine=cpu", "engine is 'cpu', and holds settings of its own: engine.accelerator=, "),
        ("objective.metrc=loss", "Allowed: metric, direction"),
        ("peft=lara", "lora_small"),
        ("recipe=sft", "Type +recipe=sft"),
        ("engine.acelerator=cpu", "Did you mean 'accelerator'"),
        ("dataset.evalsize=3", "Did you mean 'eval_size'"),
        ("dataset=local", "dataset.path"),
        ("dataset=local dataset.path=", "Seen: path='', name=None"),
        ("peft=none peft.r=4", "Choose peft=lora"),
        ("chunks=0", "Allowed: a whole number from 1 up"),
        ("-m name=a,b", "name belongs to the whole experiment"),
        ("-m engine.devices=1,2", "engine.devices belongs to the whole experiment and cannot differ"),
        ("-m engine.devices=1,2", "Seen: 1 (run 0) and 2 (run 1)"),
        ("-m ++loggers.x.api_key=aaaa,bbbb", "loggers.x.api_key belongs to the whole experiment"),
        ("-m +x=1 chunks=two,3", "chunks is 'two'"),
        ("dataset=local dataset.path=[]", "dataset.path is an empty list"),
        ("dataset.eval_path=", "dataset.eval_path is ''. Allowed: a path, or null"),
        ("evaluation.generate.sampels=4", "generate.samples is 0: nothing is generated. Did you mean 'samples'"),
        ("dataset.probabilities=[0.5,0.5]", "dataset.probabilities mixes several data sets, and there is one"),
        (
            "dataset.columns=prompt",
            "dataset.columns is 'prompt'. Allowed: {column in the data: column that the trainer",
        ),
        (
            "+recip=sft",
            "recip stands at the root of the configuration, where nothing reads it. Did you mean +recipe=sft?",
        ),
        ("+chunk=8", "Did you mean chunks=8?"),
        ("lr=abc", "lr is 'abc'. Allowed: a number, such as 2e-4."),
        ("lr=null", "lr is None. Allowed: a number, such as 2e-4."),
        ("seed=abc", "seed is 'abc'. Allowed: a whole number from 0 up"),
        ("engine.devices=first", "engine.devices is 'first'. Allowed: auto (all that are visible), how many, or which"),
        ("engine.devices=[0,0]", "engine.devices is [0, 0]. Allowed: each device once"),
        ("+engine.device=1 engine.devices=2", "engine.device is 1 and engine.devices is 2. Give one of them."),
        ("engine.capture_output=no_thanks", "engine.capture_output is 'no_thanks'. Allowed: true, false"),
        ("name=", "name is ''. Give the experiment a name"),
        ("trainer.callbacks=[3]", "trainer.callbacks has 3. Allowed: classes by _target_"),
    ],
)
def test_mistakes_are_answered_before_any_training(rfflow: Shell, line: str, hint: str) -> None:
    said = rfflow(*line.split())
    assert rfflow.status == 1
    assert hint in said
    assert not any(word in said for word in ("Traceback", "HYDRA_FULL_ERROR", "with overrides"))
    assert rfflow.engines == []


def test_a_trace_is_there_for_who_asks_for_it(rfflow: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ConfigError, match="chunks is 0"):
        rfflow("+recipe=sft", "chunks=0")
    with pytest.raises(ConfigCompositionException, match="lrr"):
        rfflow("+recipe=sft", "lrr=3")


@pytest.mark.parametrize("mode", [(), ("--multirun",)])
def test_what_nobody_has_thought_of_shows_its_trace(
    rfflow: Shell, mode: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(*args: object) -> None:
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr(StubEngine, "run", break_down)
    said = rfflow("+recipe=sft", *mode)
    assert rfflow.status == 1
    assert "Traceback" in said and "ZeroDivisionError: a fault of ours" in said


@pytest.mark.parametrize("mode", [(), ("--multirun",)])
def test_a_run_that_failed_does_not_repeat_the_overrides(
    rfflow: Shell, mode: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = {0: ValueError("loss is NaN")}
    monkeypatch.setattr(start, "make_engine", lambda *args: StubEngine(*args, failing=failing))
    said = rfflow("+recipe=sft", *mode, "trainer.args.warmup_steps=7")
    assert rfflow.status == 1
    assert "Run 0 (" in said and "failed: ValueError: loss is NaN\nIts trace: outputs/sft/" in said
    assert not any(word in said for word in ("Traceback", "HYDRA_FULL_ERROR", "with overrides"))
    said = rfflow("+recipe=sft", *mode, *(f"trainer.args.{name}_steps=70000" for name in ("warmup", "logging", "save")))
    assert "Run 0 failed: ValueError: loss is NaN\n" in said


@pytest.mark.parametrize("words", [(), ("--multirun",), ("-m",), ("--run",)])
def test_the_command_alone_says_how_it_is_used(rfflow: Shell, words: tuple[str, ...]) -> None:
    said = rfflow(*words)
    assert (rfflow.status, rfflow.engines, list(Path().iterdir())) == (2, [], [])
    assert "rfflow +recipe=sft --multirun lr=1e-3,1e-4" in said and "Recipes: api, customer_support, dpo, fit_" in said


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("train", "'train' is no override, which would be key=value. To train: rfflow +recipe=sft --multirun"),
        ("sft", "Type +recipe=sft"),
        ("sftt", "Did you mean +recipe=sft?"),
        ("lora", "Type peft=lora"),
        ("recipe sft", "It is a group. Type +recipe=sft"),
        ("my.jsonl", "dataset=local dataset.path=my.jsonl"),
        ("stop 3", "Type rfflow ctl stop 3"),
        ("stat", "Did you mean rfflow ctl status?"),
        ("clt stop 3", "Did you mean rfflow ctl?"),
        ("+recipe=sft ctl", "It stands first: rfflow ctl --help"),
        ("resume", "Type rfflow resume=outputs/... to go on with an experiment"),
        ("--resume outputs/x", "Type resume=outputs/x"),
        ("resume outputs/sft", "Type rfflow resume=outputs/sft"),
        ("help", "Type rfflow --help"),
        ("--multirn +recipe=sft", "There is no --multirn. Did you mean --multirun?"),
        ("--recipe sft", "There is no --recipe. Overrides have no dashes. Type +recipe=sft"),
        ("--peft=loraa", "Type peft=lora"),
        ("-recipe=sft", "Type +recipe=sft"),
        ("+recipe=sft --lr 1e-3", "Type lr=1e-3"),
        ("--learning_rate=1e-3", "Type lr=1e-3"),
        ("--warmup-steps 3", "Type trainer.args.warmup_steps=3"),
        ("--warm-start", "It belongs to rfflow ctl"),
        ("+recipe=sft -x", "There is no -x. All flags: rfflow --hydra-help"),
        ("--cfg jobb", "invalid choice: 'jobb'"),
        ("--config-dir nowhere +recipe=sft", "--config-dir nowhere: there is no such folder."),
        ("+recipe=sft -m lr=1e-3, 1e-4", "Blanks part words. Type 'lr=1e-3, 1e-4'"),
        ("+recipe=sft lr = 1e-3", "Blanks part words. Type lr=1e-3"),
        ("+recipe=sft peft.target_modules=[q, v]", "Type 'peft.target_modules=[q, v]'"),
        ("+recipe=sft dataset.path=a=b.jsonl", "As text: 'dataset.path=\"a=b.jsonl\"'"),
        ("+recipe=sft =3", "'=3' cannot be read: there is no key."),
    ],
)
def test_words_that_are_no_overrides_are_answered_by_what_to_type(rfflow: Shell, line: str, answer: str) -> None:
    said = rfflow(*line.split())
    assert (rfflow.status, rfflow.engines) == (2, [])
    assert answer in said and "usage:" not in said and "HYDRA_FULL_ERROR" not in said


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("pefft.r=4", "There is no pefft. Did you mean peft.r=4?"),
        ("checkpoint.evry=2", "There is no checkpoint.evry. Did you mean checkpoint.every=2?"),
        ("search.n_trials=4", "search=none is chosen, which has no such setting. Type search=tpe search.n_trials=4"),
        ("policy.dry_run=true", "Type policy=halving policy.dry_run=true"),
        ("search=tpe search.n_trial=4", "Did you mean search.n_trials=4?"),
        ("recipe=sftt", "There is no recipe 'sftt'. Did you mean +recipe=sft?"),
        ("+recipe=sftt", "Did you mean +recipe=sft? There are: api, customer_support, dpo, fit_"),
        ("recip=sftt", "There is no recip. Did you mean +recipe=sft?"),
        ("peft=loraa", "There is no peft 'loraa'. Did you mean peft=lora? There are: lora, "),
        ("--multirun peft=lora,loraa", "There is no peft 'loraa'. Did you mean peft=lora?"),
        ("lr=1e-3,1e-4", "lr=1e-3,1e-4 is several values. To train them all, add --multirun; for one, type lr=0.001"),
        (
            "policy.rules=[]",
            "policy=none is chosen, which has no such setting. Type policy=rules policy.rules=[] (or pbt)",
        ),
        ("hydra.sweeper.params.lr=1,2", "quote the value"),
        ("--cfg job --resolve peft.lora_alpha=${peft.rr}", "=${peft.rr}: Interpolation key 'peft.rr' not found"),
        ("peft=lora,none", "add --multirun; for one, type peft=lora"),
        ("lr=interval(1e-5,1e-3)", "lr=interval(1e-5,1e-3) is several values. To train them all, add --multirun"),
        ("+recipe=sft +recipe=dpo", "choose one of them, or train both with --multirun +recipe=sft,dpo"),
        ("peft=null", "There is no peft 'null'. There are: lora, "),
        ("trainer=3", "There is no trainer '3'. There are: dpo, "),
        ("search=tpe", "search=tpe asks for configurations, and this is one run. Add --multirun and what to search"),
        ("dataset=local", "dataset.path is not given, and has no value of its own. Type dataset.path=..."),
        ("resum=outputs/x", "Did you mean resume=outputs/x?"),
        ("pefft=loraa", "There is no pefft. Did you mean peft=lora?"),
        ("+peft=lora", "peft=lora is chosen already. Type peft=lora, without the plus"),
        ("~peeft", "There is no peeft. Did you mean ~peft?"),
        ("dataset=my.jsonl", "Rows of your own: dataset=local dataset.path=my.jsonl"),
        ("model=Qwen/Qwen3-0.6B", "model=hub model.name=Qwen/Qwen3-0.6B"),
        ("callbacks.mine._target_=x", "A key of your own takes a plus: +callbacks.mine._target_=x"),
        ("zzz=3", "There is no zzz. The configuration has callbacks, checkpoint, chunks, "),
        ("hydra.run.dirr=x", "Did you mean hydra.run.dir=x?"),
        ("--config-name nope chunks=3", "Cannot find primary config 'nope'"),
    ],
)
def test_what_does_not_compose_is_answered_by_what_to_type(rfflow: Shell, line: str, answer: str) -> None:
    said = rfflow(*line.split())
    assert (rfflow.status, rfflow.engines) == (1, [])
    assert answer in said and "HYDRA_FULL_ERROR" not in said


def test_a_clone_that_does_not_compose_is_answered_in_the_same_way(
    rfflow: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(engine: StubEngine) -> None:
        with pytest.raises(ConfigError, match=r"There is no pefft\. Did you mean peft\.r=4\?"):
            engine.composer.compose_clone(engine.runs[0], ("pefft.r=4",), 1)
        with pytest.raises(ConfigError, match=r"There is no peft 'loraa'\. Did you mean peft=lora\?"):
            engine.composer.compose_clone(engine.runs[0], ("peft=loraa",), 1)

    monkeypatch.setattr(StubEngine, "run", run)
    said = rfflow("+recipe=sft", "lr=1e-3")
    assert rfflow.status == 0, said


@pytest.mark.parametrize(
    ("argv", "begins"),
    [
        (["/somewhere/bin/rfflow"], "rfflow resume="),
        (["/somewhere/rfflow/__main__.py"], "python3 -m rfflow resume="),
        (["mine.py"], "python -m rfflow resume="),
    ],
)
def test_commands_begin_as_the_user_has_begun(argv: list[str], begins: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", ["python3", "-m", "rfflow"])
    assert resume_command(Path("outputs/sft")).startswith(begins)


def test_a_config_folder_of_ones_own_adds_to_ours(rfflow: Shell, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    _write(mine / "model/phi.yaml", "name: microsoft/phi-4\n")
    _write(mine / "dataset/faq.yaml", "path: faq.jsonl\n")
    _write(
        mine / "recipe/support.yaml",
        "# @package _global_\ndefaults:\n- override /model: phi\n- override /dataset: faq\nname: support\nchunks: 8\n",
    )
    rfflow("+recipe=support", "--config-dir", str(mine), "--multirun", "model=phi,smollm2")
    engine = rfflow.engines[0]
    assert engine.runs[0].spec.model.name == "microsoft/phi-4"
    assert {run.spec.dataset.path for run in engine.runs} == {"faq.jsonl"}
    assert (engine.spec.name, engine.runs[0].spec.chunks) == ("support", 8)


def test_a_key_of_ones_own_may_stand_at_the_root(rfflow: Shell) -> None:
    """For other keys to refer to, whatever its name, and as a note to oneself; the others are known to be unread."""
    rfflow("+recipe=sft", "+chunk=8", "chunks=${chunk}", "+warmup_steps=3", "+why=baseline")
    (run,) = rfflow.engines[0].runs
    assert (run.spec.chunks, run.spec.unread) == (8, ("warmup_steps", "why"))


def test_a_recipe_leaves_no_numbers_behind_for_other_data(rfflow: Shell) -> None:
    rfflow("+recipe=sft", "dataset=local", "dataset.path=faq.jsonl")
    spec = rfflow.engines[0].runs[0].spec.dataset
    assert (spec.path, spec.max_samples, spec.columns) == ("faq.jsonl", None, {})


def test_cfg_shows_the_configuration_and_stops(rfflow: Shell) -> None:
    said = rfflow("+recipe=sft", "--cfg", "job", "trainer.args.packing=true", "--resolve")
    assert "packing: true" in said
    assert "learning_rate: 0.0002" in said
    assert rfflow.engines == []


def test_a_whole_sweep_has_no_one_configuration_to_show(rfflow: Shell) -> None:
    said = rfflow("+recipe=sft", "--multirun", "lr=1e-3,1e-4", "--cfg", "job")
    assert rfflow.status == 2 and "--multirun and --cfg cannot be given together" in said and not rfflow.engines


def test_version_names_rfflow(rfflow: Shell) -> None:
    assert rfflow("--version").startswith("rfflow 0.")


@pytest.mark.parametrize(
    "line, expected",
    [
        ("rfflow +recipe=", "+recipe=sft"),
        ("rfflow peft=lora_s", "peft=lora_small"),
        ("rfflow +recipe=sft --multirun dataset=fi", "dataset=fiqa dataset=fiqa_small"),
        ("rfflow +recipe=sft --multirun lr=1e-3,1e-4 trainer.args.warmup_steps=3 obj", "objective."),
        ("rfflow trainer.args.max_", "trainer.args.max_length="),
        ("bin/rfflow ", "callbacks"),
        ("rfflow exp", "export"),
        ("rfflow ctl cl", "clone"),
        ("rfflow chat --runs 0,1 ", "outputs/sft/first"),
        ("rfflow resume=out", "resume=outputs/sft/first"),
    ],
)
def test_the_shell_completes(rfflow: Shell, monkeypatch: pytest.MonkeyPatch, line: str, expected: str) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    if "first" in expected:
        Path("outputs/sft/first").mkdir(parents=True)
        Path("outputs/sft/first/experiment.json").touch()
    said = rfflow("-sc", "query=bash")
    assert expected in said


def test_completion_is_installed_for_the_console_script(rfflow: Shell) -> None:
    assert rfflow("-sc", "install=bash").strip().endswith("hydra_bash_completion rfflow")


def test_help_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "from rfflow.__main__ import main\n"
        "sys.argv = ['rfflow', '--help']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'trl', 'peft', 'datasets', 'lightning_fabric'} & set(sys.modules)\n"
        "print(heavy or 'light')\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "+recipe=sft --multirun" in said.stdout
    assert said.stdout.endswith("light\n")
    assert said.stderr == ""


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
