"""Weights & Biases with its own package: offline, and with stand-ins for its server on loopback."""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rfflow.errors import ConfigError
from rfflow.runs.experiment import Experiment
from rfflow.tracking.timeline import Timeline
from tests.loggers.served import WandbStandIn
from tests.loggers.test_trackers import tell_and_be_killed, tell_and_resume
from tests.tracking.story import Story, add_run, make_experiment

wandb = pytest.importorskip("wandb", reason="NOT TESTED: Weights & Biases, which is not installed")

BLOCK = 32768


class Seen:
    """A run as ``wandb sync`` would have it, of all the files that have its id."""

    def __init__(self) -> None:
        self.name = self.group = self.notes = self.project = ""
        self.tags: list[str] = []
        self.config: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.axes: dict[str, str] = {}
        self.artifacts: dict[str, list[str]] = {}
        self.exits: list[int] = []

    def points(self, key: str) -> list[tuple[int, float]]:
        axis = "by_chunk/chunk" if key.startswith("by_chunk/") else "step"
        return [(row[axis], row[key]) for row in self.history if key in row]

    def take(self, record: Any) -> None:
        if record.HasField("run"):
            run = record.run
            self.name, self.group, self.project = run.display_name, run.run_group, run.project
            self.tags, self.notes = list(run.tags), run.notes or self.notes
            self.config |= {item.key: json.loads(item.value_json) for item in run.config.update}
        for item in record.summary.update:
            self.summary["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
        if record.HasField("history"):
            row = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            self.history.append(row)
        if record.HasField("metric"):
            self.axes[record.metric.name or record.metric.glob_name] = record.metric.step_metric
        if record.HasField("artifact"):
            self.artifacts[record.artifact.name] = [entry.path for entry in record.artifact.manifest.contents]
        if record.HasField("exit"):
            self.exits.append(record.exit.exit_code)


def records(path: Path) -> Iterator[Any]:
    """Read a file of W&B's: a head of 7 bytes, and records as LevelDB's log has them."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(whole)
            whole = b""


def read_all(folder: Path) -> dict[str, Seen]:
    """Return the runs by what stands behind the experiment's id."""
    end_wandb()  # whatever W&B's own process still has goes to its files
    found: dict[str, Seen] = defaultdict(Seen)
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for record in records(path):
            found[path.stem.rpartition("-")[2]].take(record)
    return dict(found)


def end_wandb() -> None:
    """End W&B's own process; where it has missed the word to, it ends with this one, and nobody waits."""
    end = threading.Thread(target=wandb.teardown, daemon=True)
    end.start()
    end.join(20)


def logger(**kwargs: Any) -> Any:
    from rfflow.loggers.wandb import WandbLogger

    return WandbLogger(**{"mode": "offline", "patience": 120.0, **kwargs})


@pytest.fixture(autouse=True)
def of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Stand where W&B keeps its files, as a user without an account."""
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_HTTP_TIMEOUT", "2")
    monkeypatch.setenv("WANDB_SILENT", "true")
    end_wandb()
    yield
    end_wandb()


def test_wandb_has_a_run_for_each(experiment: Experiment, tmp_path: Path) -> None:
    """In one group: settings, metrics by step and chunk, states, ops, files; the same ids after a crash."""
    tell_and_resume(experiment, lambda: logger(artifacts=["adapter", "timeline"]))
    runs = read_all(tmp_path)
    assert {*runs} == {"all", "0", "1", "2", "3", "4"}
    assert {run.group for run in runs.values()} == {"now"} and {run.project for run in runs.values()} == {"sft"}
    assert runs["0"].name == "0 lr=1e-3" and runs["0"].config["trainer"]["args"]["learning_rate"] == 0.001
    assert runs["1"].config["peft"]["chosen"] == "lora_large" and runs["1"].config["peft"]["r"] == 64
    assert runs["4"].config["rfflow"] == {"run": 4, "parent": 0, "chunks_before": 1}
    assert {name: run.tags for name, run in runs.items()} == {
        "all": [],
        "0": ["completed"],
        "1": ["running"],
        "2": ["deleted"],
        "3": ["failed"],
        "4": ["clone", "running"],
    }
    assert {name: run.summary.get("rfflow.state") for name, run in runs.items() if name != "all"} == {
        "0": "completed",
        "1": "running",
        "2": "deleted",
        "3": "failed",
        "4": "running",
    }
    assert runs["3"].exits == [1] and runs["2"].exits == [0] and runs["0"].exits == [1, 0], "cut short, then done"
    assert "run 1 is stopped" in runs["1"].notes and "run 1 is running" in runs["1"].notes, "of both processes"
    assert "run 2 is deleted" in runs["2"].notes
    assert runs["0"].points("train/loss") == [(2, 2.0), (4, 1.0)], "nothing twice"
    assert runs["0"].points("by_chunk/train/loss") == [(1, 2.0), (2, 1.0)]
    assert runs["4"].points("by_chunk/train/loss") == [(2, 0.5)], "behind its parent's chunk"
    assert runs["0"].axes["train/*"] == "step" and runs["0"].axes["by_chunk/*"] == "by_chunk/chunk"
    assert runs["0"].artifacts == {"now-0-adapter": ["adapter_config.json"]}
    assert {*runs["all"].artifacts} == {"now-timeline.json", "now-timeline.png"}
    assert wandb.run is None, "a run that a trainer or a callback begins is its own"


def test_no_secret_is_in_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither from the configuration, where it is masked, nor from the command line."""
    monkeypatch.setattr("sys.argv", ["rfflow", "hub_token=sesame-of-forty-thieves"])
    experiment = make_experiment(tmp_path / "outputs/sft/now", ("lr=1e-3",))
    experiment.runs[0].spec.config["hub_token"] = "(hidden)"
    tracker = logger()
    story = Story(experiment, Timeline(), tracker)
    story.begin()
    story.chunk(experiment.runs[0], {"loss": 1.0})
    story.call("on_op", run=experiment.runs[0], text="010.yaml: clone with hub_token=sesame-of-forty-thieves")
    tracker.finalize("failed")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert not [path for path in files if b"sesame" in path.read_bytes()]


def test_wandb_gets_what_a_killed_process_has_had_no_time_for(experiment: Experiment, tmp_path: Path) -> None:
    tell_and_be_killed(experiment, logger)
    runs = read_all(tmp_path)
    for number in ("0", "1"):
        assert runs[number].points("train/loss") == [(2, 2.0), (4, 1.0)]
        assert runs[number].points("by_chunk/train/loss") == [(1, 2.0), (2, 1.0)]
    assert runs["1"].exits == [1, 0] and runs["1"].summary["rfflow.state"] == "completed"


def test_a_run_that_an_op_takes_up_again_goes_on(tmp_path: Path) -> None:
    """With an op after its end: that is the same run of W&B's."""
    experiment = make_experiment(tmp_path / "outputs/sft/now", ("lr=1e-3",), ("lr=1e-4",))
    first, second = experiment.runs
    tracker = logger()
    story = Story(experiment, Timeline(), tracker)
    story.begin()
    story.chunk(first, {"loss": 1.0})
    story.complete(first)
    story.chunk(second, {"loss": 1.0})
    story.call("on_op", run=first, text="020.yaml: cloned")
    clone = add_run(experiment, ("lr=5e-4",), parent=0)
    story.change(clone)
    tracker.finalize("success")
    runs = read_all(tmp_path)
    assert {"0", "1", "2"} <= {*runs} and "020.yaml: cloned" in runs["0"].notes and runs["0"].tags == ["completed"]


def test_a_run_that_others_begin_is_not_ours(tmp_path: Path) -> None:
    """``wandb.init`` goes on with the last run there is, unless told otherwise."""
    experiment = make_experiment(tmp_path / "outputs/sft/now", ("lr=1e-3",))
    tracker = logger()
    story = Story(experiment, Timeline(), tracker)
    story.begin()
    story.chunk(experiment.runs[0], {"loss": 1.0})
    begun = threading.Event()
    tracker._calls.put(begun.set)
    assert begun.wait(120)
    own = wandb.init(project="own", mode="offline")
    assert own.id != f"{experiment.id}-0"
    own.finish()
    tracker.finalize("failed")
    assert [value for _, value in read_all(tmp_path)["0"].points("train/loss")] == [1.0]


def test_wandb_without_a_key_is_answered_before_training() -> None:
    """With what to say instead."""
    with pytest.raises(ConfigError, match=r"no API key for https://.*`wandb login`.*loggers.wandb.mode=offline"):
        logger(mode=None)


def test_a_wandb_that_is_not_there_is_answered_before_training(
    nowhere: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As one that takes no such key."""
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", nowhere)
    with pytest.raises(ConfigError, match=rf"W&B at {nowhere}: .*WANDB_BASE_URL; loggers.wandb.mode=offline"):
        logger(mode="online")


class Refusing(BaseHTTPRequestHandler):
    """Takes nobody's key."""

    def do_POST(self) -> None:
        """Say so."""
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(401)
        self.end_headers()
        self.wfile.write(b'{"errors": [{"message": "user is not logged in"}]}')

    def log_message(self, format: str, *args: Any) -> None:
        """Be silent."""


def test_a_key_that_wandb_does_not_take_is_answered_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the server's words, and without the key."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(ConfigError, match=r"user is not logged in.*WANDB_API_KEY") as said:
            logger(mode="online")
        assert "a" * 40 not in str(said.value)
        server.shutdown()


def test_a_process_of_wandbs_that_does_not_end_holds_nobody(
    nowhere: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither behind a refusal nor at the end; at the exit of Python W&B would wait for it for ever."""
    gate = threading.Event()
    monkeypatch.setattr(wandb, "teardown", gate.wait)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", nowhere)
    with pytest.raises(ConfigError, match="W&B at"):
        logger(mode="online", patience=0.01)
    logger(mode="disabled", patience=0.01).finalize("success")
    gate.set()
    assert len([text for text in caplog.messages if "own process has not ended within 0.01 s" in text]) == 2


def test_a_mode_that_wandb_has_not_is_answered() -> None:
    """With the nearest."""
    with pytest.raises(ConfigError, match=r"mode is 'ofline'. Did you mean 'offline'"):
        logger(mode="ofline")


# --- a server ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbStandIn]:
    """A server that takes everybody's key."""
    server = WandbStandIn()
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", server.uri)
    yield server
    end_wandb()
    server.stop()


def test_a_server_is_given_each_run(stand_in: WandbStandIn, tmp_path: Path) -> None:
    experiment = make_experiment(tmp_path / "outputs/sft/now", ("lr=1e-3",), ("lr=1e-4",))
    tracker = logger(mode="online", artifacts=())
    story = Story(experiment, Timeline(), tracker)
    story.begin()
    for run in experiment.runs:
        story.chunk(run, {"loss": 2.0})
        story.complete(run)
    story.end()
    tracker.finalize("success")
    begun = [given for name, given in stand_in.posts if name == "UpsertBucket" and given["displayName"]]
    assert {given["displayName"] for given in begun} == {"0 lr=1e-3", "1 lr=1e-4"}
    assert {given["groupName"] for given in begun} == {"now"}
    assert [row["train/loss"] for row in stand_in.history("1") if "train/loss" in row] == [2.0]


def warned(caplog: pytest.LogCaptureFixture) -> str:
    """Return what of all that was logged we have said; W&B itself says much."""
    return "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("rfflow"))


def test_a_server_that_dies_midway_costs_a_warning(
    stand_in: WandbStandIn, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The training does not wait for it, the end no longer than was said, and what it missed can be handed over."""
    experiment = make_experiment(tmp_path / "outputs/sft/now", ("lr=1e-3",), ("lr=1e-4",))
    tracker = logger(mode="online", patience=1.0)
    story = Story(experiment, Timeline(), tracker)
    story.begin()

    def is_told() -> bool:
        has_told = threading.Event()
        tracker._ask(has_told.set)
        return has_told.wait(120)

    for run in experiment.runs:
        story.chunk(run, {"loss": 2.0})
    assert is_told() and not warned(caplog)
    stand_in.stop()
    story.chunk(experiment.runs[0], {"loss": 1.0})
    story.complete(experiment.runs[0])
    story.chunk(experiment.runs[1], {"loss": 1.0})
    assert is_told() and "Weights & Biases fails, and all else goes on: TimeoutError" in warned(caplog)
    story.complete(experiment.runs[1])
    story.end()
    begun = time.monotonic()
    tracker.finalize("success")
    assert time.monotonic() - begun < 10 and "Weights & Biases has missed" in warned(caplog)
    kept = [record for path in tmp_path.glob("wandb/run-*-0/*.wandb") for record in records(path)]
    seen = Seen()
    for record in kept:
        seen.take(record)
    assert [value for _, value in seen.points("train/loss")] == [2.0, 1.0], "for `wandb sync`"
