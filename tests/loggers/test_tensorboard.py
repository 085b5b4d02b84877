"""What TensorBoard reads from the directories that the logger writes."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from tensorboard import context
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugin_util import markdown_to_safe_html
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import api_pb2, backend_context, get_experiment, list_session_groups
from tensorboard.util.tensor_util import make_ndarray

from rfflow.config.spec import Objective
from rfflow.loggers.tensorboard import TensorBoardLogger
from rfflow.runs.experiment import Experiment
from rfflow.runs.run import RunState
from rfflow.tracking.timeline import Timeline
from tests.tracking.story import FOUR, Story, add_run, make_experiment, tell_whole

EVERY = ["chunk", "state"]
"""Metrics that every run has."""


class Board:
    """TensorBoard without its server: the same loader and the HParams plugin's own handlers."""

    def __init__(self, root: Path):
        self.root = root
        self._files = EventMultiplexer()
        provider = MultiplexerDataProvider(self._files, str(root))
        self._hparams = backend_context.Context(TBContext(data_provider=provider, logdir=str(root)))

    def reload(self) -> Board:
        """Look at the files again, as a running TensorBoard does every few seconds."""
        self._files.AddRunsFromDirectory(str(self.root)).Reload()
        return self

    def runs(self) -> set[str]:
        """Return the directories that hold events."""
        return {*self._files.Runs()}

    def columns(self) -> tuple[list[str], list[str]]:
        """Return the HParams table's settings and metrics."""
        ctx = context.RequestContext()
        known = self._hparams.hparams_metadata(ctx, "")
        answer = get_experiment.Handler(ctx, self._hparams, "", api_pb2.GetExperimentRequest()).run()
        assert known
        return [info.name for info in answer.hparam_infos], [info.name.tag for info in answer.metric_infos]

    def rows(self) -> dict[str, Any]:
        """Return the HParams table's rows: status, settings, metrics."""
        statuses = [api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_SUCCESS, api_pb2.STATUS_FAILURE, api_pb2.STATUS_RUNNING]
        request = api_pb2.ListSessionGroupsRequest(slice_size=100, allowed_statuses=statuses)
        answer = list_session_groups.Handler(context.RequestContext(), self._hparams, "", request).run()
        return {
            group.name.split()[0]: (
                api_pb2.Status.Name(group.sessions[0].status).removeprefix("STATUS_"),
                {key: getattr(value, value.WhichOneof("kind")) for key, value in group.hparams.items()},
                {value.name.tag: value.value for value in group.sessions[0].metric_values},
            )
            for group in answer.session_groups
        }


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    """Make four runs."""
    return make_experiment(tmp_path, *FOUR)


def _read(experiment: Experiment, run: int) -> EventAccumulator:
    """Read as a running TensorBoard does, which drops what a resumed run repeats where others do not."""
    return EventAccumulator(str(experiment.paths.curves(run))).Reload()


def _points(events: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, float(make_ndarray(event.tensor_proto))) for event in events.Tensors(tag)]


def test_every_run_has_its_curves_against_the_step(experiment: Experiment) -> None:
    """Training, evaluation and chunk, NaN and infinity included."""
    tell_whole(experiment, TensorBoardLogger())
    good, diverging, silent = (_read(experiment, number) for number in range(3))
    assert _points(good, "train/loss") == [(2, 2), (4, 1), (6, 0.5), (8, pytest.approx(1 / 3))]
    assert _points(good, "eval/loss")[:2] == [(2, 2.5), (4, 1.5)]
    assert _points(good, "chunk") == [(0, 0), (2, 1), (4, 2), (6, 3), (8, 4)]
    assert math.isnan(_points(diverging, "train/loss")[0][1])
    assert _points(diverging, "eval/loss")[0][1] == math.inf
    assert not any(tag.startswith(("train/", "eval/")) for tag in silent.Tags()["tensors"])


def test_curves_can_be_seen_after_every_chunk(experiment: Experiment) -> None:
    """Not only when the experiment has ended."""
    logger = TensorBoardLogger()
    story = Story(experiment, logger)
    story.begin()
    story.chunk(experiment.runs[0], {"loss": 2.0})
    assert _points(_read(experiment, 0), "train/loss") == [(2, 2)]
    logger.finalize("success")


def test_the_configuration_is_shown_as_text(experiment: Experiment) -> None:
    """As YAML in a block of code, so that underscores and stars stay what they are."""
    tell_whole(experiment, TensorBoardLogger())
    events = _read(experiment, 1)

    def text(tag: str) -> str:
        [event] = events.Tensors(f"{tag}/text_summary")
        return markdown_to_safe_html(event.tensor_proto.string_val[0])

    assert "<pre><code>lr: 0.1\ntrainer:\n  args:\n    learning_rate: 0.1" in text("config")
    assert "target_modules:\n  - q_proj" in text("config")
    assert text("overrides") == "<pre><code>lr=1e-1\npeft=lora_large\n</code></pre>"


def test_the_hparams_table_has_every_run_from_the_start(experiment: Experiment) -> None:
    """Its columns are what was overridden and what differs, without what only repeats it."""
    story = Story(experiment, TensorBoardLogger())
    story.begin()
    board = Board(experiment.paths.tensorboard).reload()
    assert board.columns() == (["lr", "peft", "peft.r", "trainer.args.max_steps"], EVERY)
    rows = board.rows()
    assert [*rows] == ["0", "1", "2", "3"]
    assert rows["1"][1]["lr"] == 0.1 and rows["1"][1]["peft"] == "lora_large" and rows["1"][1]["peft.r"] == 64
    assert rows["3"][1]["lr"] == 2e-4 and rows["3"][1]["peft.use_dora"] is False


def test_the_hparams_table_lives(experiment: Experiment) -> None:
    """One TensorBoard that never restarts sees new metrics, ends, clones with new settings, and deletions."""
    objective = Objective("accuracy", "maximize")
    experiment.spec = type(experiment.spec)(name="sft", objective=objective)
    board = Board(experiment.paths.tensorboard)
    story = Story(experiment, TensorBoardLogger())
    story.begin()
    first, second, third, _ = experiment.runs
    assert board.reload().columns()[1] == EVERY

    story.chunk(first, {"loss": 2.0, "eval_loss": 2.5, "eval_accuracy": 0.5, "accuracy": 0.25, "eval_runtime": 1.0})
    assert board.reload().columns()[1] == [
        "train/accuracy",
        "eval/loss",
        "train/loss",
        *EVERY,
        "eval/accuracy",
        "eval/runtime",
    ]
    assert board.rows()["0"][2]["eval/accuracy"] == 0.5

    story.chunk(second, {"loss": 3.0})
    story.fail(second, RuntimeError("no"))
    clone = add_run(experiment, ("peft.lora_alpha=32",), parent=0)
    story.change(clone)
    story.chunk(clone, {"loss": 1.0})
    board.reload()
    assert {*board.columns()[0]} == {
        "lr",
        "parent",
        "peft",
        "trainer.args.max_steps",
        "peft.lora_alpha",
        "peft.r",
    }
    assert {name: row[0] for name, row in board.rows().items()} == {
        "0": "UNKNOWN",
        "1": "FAILURE",
        "2": "UNKNOWN",
        "3": "UNKNOWN",
        "4": "UNKNOWN",
    }
    assert board.rows()["4"][2] == {"train/loss": 1.0, "chunk": 1.0, "state": 1.0}

    story.change(third, RunState.DELETED)
    assert not [*experiment.paths.tensorboard.glob("2*")]
    story.log(third, {"loss": 1.0}, step=2)
    assert [*board.reload().rows()] == ["0", "1", "3", "4"]
    story.complete(first)
    story.end()
    assert board.reload().rows()["0"][0] == "SUCCESS"
    assert len(board.runs()) == 5, "one directory besides the runs'"


def test_runs_are_called_by_what_sets_them_apart(experiment: Experiment) -> None:
    """Also where the experiment goes on, and where their overrides hold what is better in no file's name."""
    odd = add_run(
        experiment, ("dataset.path=/data/my rows.jsonl", "trainer.args.lr=1", "peft.lr=2", "~callbacks.table")
    )
    names = {"0 lr=1e-3", "1 lr=1e-1 peft=lora_large", "2 max_steps=8", "3", "experiment"}
    names.add("4 path=_data_my_rows.jsonl trainer.args.lr=1 peft.lr=2 ~table")
    for _ in range(2):
        story = Story(experiment, TensorBoardLogger())
        story.begin()
        assert {path.name for path in experiment.paths.tensorboard.iterdir()} - {"experiment-2"} | {
            "experiment"
        } == names
        assert experiment.paths.curves(odd.number).name in names
        odd.overrides = ("what=else",)  # as an older version may have called them
        story.end()


def test_curves_by_chunk_line_up(experiment: Experiment) -> None:
    """Whatever the batch size, and those of a warm clone begin where its parent was, in a process that goes on, too."""
    first, second, *_ = experiment.runs
    story = Story(experiment, TensorBoardLogger())
    story.begin()
    for run in (first, second):
        story.chunk(run, {"loss": 2.0, "eval_loss": 2.5})
    story.chunk(first, {"loss": 1.0})
    clone = add_run(experiment, ("lr=5e-4",), parent=0)
    clone.chunks_before = 2
    story.change(clone)
    story.chunk(clone, {"loss": 0.5})
    story.chunk(clone, {"loss": 0.25})
    story.call("on_exception", error=KeyboardInterrupt())
    clone.chunks.pop()  # its checkpoint was not there yet
    clone.step = 2
    again = Story(experiment, TensorBoardLogger())
    again.begin()
    again.chunk(clone, {"loss": 0.25})
    again.complete(clone)
    again.end()
    assert _points(_read(experiment, 0), "by_chunk/train/loss") == [(1, 2), (2, 1)]
    assert _points(_read(experiment, 1), "by_chunk/eval/loss") == [(1, 2.5)]
    assert _points(_read(experiment, clone.number), "by_chunk/train/loss") == [(3, 0.5), (4, 0.25)]
    assert _points(_read(experiment, clone.number), "train/loss") == [(2, 0.5), (4, 0.25)]
    states = [(step, code) for step, code in _points(_read(experiment, clone.number), "state") if step]
    assert states == [(4, 3)], "that it runs is not said twice"


def test_every_run_is_in_the_parallel_coordinates(experiment: Experiment) -> None:
    """They leave out a run that lacks a value in any column."""
    story = Story(experiment, TensorBoardLogger())
    story.begin()
    story.change(add_run(experiment, ("peft.lora_alpha=32",), parent=0))
    story.change(experiment.runs[1], RunState.STOPPED)
    board = Board(experiment.paths.tensorboard).reload()
    settings, metrics = board.columns()
    assert {"parent", "trainer.args.max_steps"} <= {*settings} and metrics == EVERY
    rows = board.rows()
    assert {name: row[1]["parent"] for name, row in rows.items()} == {**dict.fromkeys("0123", "none"), "4": "0"}
    assert all({"parent", "lr", "trainer.args.max_steps"} <= row[1].keys() for name, row in rows.items() if name != "4")
    assert {name: row[2] for name, row in rows.items()} == {
        **{name: {"chunk": 0.0, "state": 0.0} for name in "0234"},
        "1": {"chunk": 0.0, "state": 2.0},
    }
    story.end()


def test_the_timeline_and_the_runs_belong_to_the_experiment(experiment: Experiment) -> None:
    """What stands beside the runs is not empty, and none of its forerunners is left."""
    logger = TensorBoardLogger()
    story = tell_whole(experiment, Timeline(), logger)
    logger.finalize("success")
    [shared] = experiment.paths.tensorboard.glob("experiment*")
    events = EventAccumulator(str(shared)).Reload()
    [event] = events.Tensors("timeline")
    assert event.tensor_proto.string_val[2] == experiment.paths.timeline_picture.read_bytes()
    text = events.Tensors("runs/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert "| 4 | lr=5e-4 | completed | 0 |" in text and len(story.experiment.runs) == text.count("\n") - 1


def test_one_page_overlays_all_runs(experiment: Experiment) -> None:
    """The losses and the learning rate, and first of all an objective that is none of them."""
    experiment.spec = type(experiment.spec)(name="sft", objective=Objective("eval_accuracy", "maximize"))
    tell_whole(experiment, TensorBoardLogger())
    [shared] = experiment.paths.tensorboard.glob("experiment*")
    [event] = EventAccumulator(str(shared)).Reload().Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    charts = {chart.title: [*chart.multiline.tag] for chart in layout.category[0].chart}
    assert charts == {
        "eval_accuracy": ["^eval/accuracy$"],
        "loss": ["^train/loss$"],
        "eval_loss": ["^eval/loss$"],
        "learning_rate": ["^train/learning_rate$"],
    }
    assert next(iter(charts)) == "eval_accuracy"


def test_a_resumed_run_replaces_the_steps_it_repeats(experiment: Experiment) -> None:
    """A process that died after the checkpoint leaves points that the next one logs again."""
    run = experiment.runs[0]
    story = Story(experiment, TensorBoardLogger())
    story.begin()
    story.chunk(run, {"loss": 2.0})
    story.log(run, {"loss": 99.0}, step=3)
    story.call("on_exception", error=KeyboardInterrupt())

    run.step = 2  # where the checkpoint is
    again = Story(experiment, TensorBoardLogger())
    again.begin()
    again.log(run, {"loss": 1.5}, step=3)
    again.end()
    assert _points(_read(experiment, 0), "train/loss") == [(2, 2), (3, 1.5)]


def test_nothing_stands_twice_where_an_experiment_goes_on(experiment: Experiment) -> None:
    """A run that has no checkpoint says its step 0 again, too; one that has does not show its settings again."""
    first, second, *_ = experiment.runs
    story = Story(experiment, TensorBoardLogger())
    story.begin()
    for run in (first, second):
        story.log(run, {"eval_loss": 9.0}, step=0)
        story.chunk(run, {"loss": 2.0, "reward": 1.0})
    story.call("on_exception", error=KeyboardInterrupt())

    columns = Board(experiment.paths.tensorboard).reload().columns()
    second.step, second.chunks, second.metrics = 0, [], {}  # the kill came before its checkpoint was whole
    again = Story(experiment, TensorBoardLogger())
    again.begin()
    assert Board(experiment.paths.tensorboard).reload().columns() == columns
    again.log(second, {"eval_loss": 9.0}, step=0)
    again.end()
    for run in (0, 1):
        assert _points(_read(experiment, run), "eval/loss") == [(0, 9)]
        assert [event.step for event in _read(experiment, run).Tensors("config/text_summary")] == [0]
    assert len(Board(experiment.paths.tensorboard).reload().rows()) == 4


def test_metrics_of_no_run_are_kept(experiment: Experiment) -> None:
    """A callback of the user's may log what belongs to the whole experiment."""
    logger = TensorBoardLogger()
    story = Story(experiment, logger)
    story.begin()
    story.fabric.log("gpu/memory", 12.0, step=1)
    story.end()
    events = EventAccumulator(str(experiment.paths.tensorboard)).Reload()
    assert _points(events, "gpu/memory") == [(1, 12)]


@pytest.mark.parametrize(("hook", "method"), [("save", "flush"), ("finalize", "close")])
def test_one_run_that_cannot_be_written_takes_no_curves_of_others(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch, hook: str, method: str
) -> None:
    """Its error comes out when the others are whole."""
    logger = TensorBoardLogger()
    story = Story(experiment, logger)
    story.begin()
    asked = []

    def fail(name: str) -> None:
        asked.append(name)
        raise OSError(28, f"No space left for {name}")

    for name, writer in logger._writers.items():
        monkeypatch.setattr(writer, method, partial(fail, name))
    with pytest.raises(OSError, match="No space left for 0"):
        getattr(logger, hook)(*["success"] * (hook == "finalize"))
    assert asked == ["0", "1", "2", "3", "experiment"]
    monkeypatch.undo()
    story.end()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_not_silent_and_loses_nothing(experiment: Experiment) -> None:
    """Its error comes out where people look; what could not be written is, once there is room."""
    logger = TensorBoardLogger()
    story = Story(experiment, logger)
    story.begin()
    file = logger._writers["0"]._get_file_writer().event_writer
    there, file._path = file._path, Path("/dev/full")
    logger.log_metrics({"0/train/loss": 1.0}, 1)
    with pytest.raises(OSError, match="No space left"):
        logger.save()
    file._path = there
    logger.save()
    assert [value for _, value in _points(_read(experiment, 0), "train/loss")] == [1.0]


def test_many_runs_need_no_threads_and_no_open_files(tmp_path: Path) -> None:
    experiment = make_experiment(tmp_path, *FOUR)
    process = psutil.Process()
    before = process.num_threads(), process.num_fds()
    story = Story(experiment, TensorBoardLogger())
    story.begin()
    for run in experiment.runs:
        story.chunk(run, {"loss": 1.0})
    assert (process.num_threads(), process.num_fds()) == before


def test_ops_and_parents_are_shown(experiment: Experiment) -> None:
    """What was done to a run is text beside its curves, and the HParams table says whose clone a run is."""
    story = tell_whole(experiment, TensorBoardLogger())
    clone = next(run for run in story.experiment.runs if run.parent is not None and run.state is not RunState.DELETED)
    board = Board(experiment.paths.tensorboard).reload()
    assert "parent" in board.columns()[0]
    assert board.rows()[clone.name][1]["parent"] == str(clone.parent)
    events = _read(experiment, clone.number)
    texts = [event.tensor_proto.string_val[0].decode() for event in events.Tensors("ops/text_summary")]
    assert texts and all(f"run {clone.number} is" in text for text in texts)
