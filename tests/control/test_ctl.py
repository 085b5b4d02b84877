"""The command line that talks to a running experiment."""

import os
import re
import subprocess
import sys
import threading

import pytest
import yaml

from rfflow.control import asking, ctl
from rfflow.control.inbox import Inbox
from rfflow.control.ops import Clone, Stop
from rfflow.control.selection import Everything, Numbers, Ranked
from rfflow.control.status import RunStatus, Status, StatusFile


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def start(here):
    """Start what stands for an experiment; its control directory is under the given path."""
    inboxes = []

    def start(path="outputs/sft/now/control"):
        inboxes.append(Inbox(here / path, path))
        return inboxes[-1]

    yield start
    for inbox in inboxes:
        inbox.close()


@pytest.fixture
def answered(monkeypatch):
    """Let the experiment take a turn while the command waits, as `answered(inbox, how)`; the ops seen are returned."""

    def prepare(inbox, how):
        seen = []

        def turn(seconds):
            for item in inbox.scan():
                seen.extend(item.ops)
                how(item)

        monkeypatch.setattr(ctl._ask, "__defaults__", (turn, ctl._ask.__defaults__[1]))
        return seen

    return prepare


def test_an_applied_op_prints_its_outcome_and_exits_0(start, answered, capsys):
    inbox = start()
    seen = answered(inbox, lambda item: inbox.done(item, "Run 3 is stopped after chunk 1."))
    assert ctl.main(["stop", "3"]) == 0
    assert capsys.readouterr().out == "Run 3 is stopped after chunk 1.\n"
    assert seen == [Stop(Numbers((3,)))]
    assert not [name for name in os.listdir(inbox.directory) if name.endswith((".yaml", ".tmp"))]


def test_a_refused_op_prints_its_reason_and_exits_1(start, answered, capsys):
    inbox = start()
    answered(inbox, lambda item: inbox.reject(item, "Cannot stop run 9: no such run."))
    assert ctl.main(["stop", "9"]) == 1
    assert "Cannot stop run 9: no such run." in capsys.readouterr().err


def test_an_answer_gives_the_terminal_no_commands(start, answered, capsys):
    """It may hold what somebody else has written into an op."""
    inbox = start()
    answered(inbox, lambda item: inbox.done(item, "Run 3 \x1b]0;mine\x07 was\ncloned: ü."))
    assert ctl.main(["stop", "3"]) == 0
    assert capsys.readouterr().out == "Run 3 \\x1b]0;mine\\x07 was\ncloned: ü.\n"


def test_an_op_that_is_not_answered_in_time_stays_and_exits_3(start, capsys):
    inbox = start()
    assert ctl.main(["stop", "3", "--timeout", "0"]) == 3
    assert "not yet" in capsys.readouterr().err
    assert [item.ops for item in inbox.scan()] == [(Stop(Numbers((3,))),)]


def test_an_experiment_that_ends_before_it_answers_is_not_waited_for(start, answered, capsys):
    inbox = start()
    answered(inbox, lambda item: inbox.close())
    assert ctl.main(["stop", "3"]) == 1
    assert "ended before" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "op"),
    [
        (["stop", "3", "1"], Stop(Numbers((3, 1)))),
        (["stop", "all"], Stop(Everything())),
        (["stop", "--worst", "50%", "--by", "eval_loss"], Stop(Ranked("worst", percent=50.0, by="eval_loss"))),
        (["stop", "--best", "2"], Stop(Ranked("best", 2))),
        (["clone", "0", "lr=5e-4", "peft.r=32", "--warm-start"], Clone(Numbers((0,)), ("lr=5e-4", "peft.r=32"), True)),
        (
            ["clone", "--warm-start", "0", "--timeout", "5", "lr=1,2", "~a"],
            Clone(Numbers((0,)), ("lr=1,2", "~a"), True),
        ),
        (["clone", "--best", "1", "x=[a,b]"], Clone(Ranked("best", 1), ("x=[a,b]",))),
    ],
)
def test_the_command_line_says_what_the_file_would(start, answered, argv, op):
    inbox = start()
    seen = answered(inbox, lambda item: inbox.done(item, "ok"))
    assert ctl.main(argv) == 0
    assert seen == [op]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "What to do. Type rfflow ctl status, or stop"),
        (["stpo", "3"], "There is no 'stpo'. Did you mean stop."),
        (["kill", "3"], "Did you mean stop."),
        (["ls"], "Did you mean status."),
        (["zzz"], "There is no 'zzz'. Allowed: stop, resume, clone, delete, status"),
        (["stop", "--wrost", "1"], "There is no --wrost. Did you mean --worst."),
        (["clone", "0", "--lr", "5e-4"], "There is no --lr. Overrides have no dashes: lr=..."),
        (["stop"], "which runs"),
        (["stop", "three"], "'three' is not a run's number"),
        (["stop", "-1"], "'-1' is not a run's number"),
        (["stop", "3", "lr=1"], "Overrides belong to clone"),
        (["stop", "3", "--best", "1"], "not both"),
        (["stop", "3", "3"], "more than once"),
        (["stop", "3", "--warm-start"], "belongs to clone"),
        (["stop", "--worst", "0"], "worst is 0"),
        (["stop", "3", "--timeout", "nan"], "invalid"),
        (["clone", "0"], "clone 0 would repeat its parent. Give overrides, such as lr=5e-4, or --warm-start"),
        (["clone", "0", "lr"], "'lr' is not a run's number. An override is key=value: lr=..."),
        (["clone", "0", "x._target_=os.system"], "may not name code"),
    ],
)
def test_wrong_usage_exits_2_and_writes_nothing(start, capsys, monkeypatch, argv, message):
    monkeypatch.setattr(sys, "argv", ["rfflow", "ctl", *argv])
    inbox = start()
    assert ctl.main(argv) == 2
    said = capsys.readouterr().err
    assert re.search(message, said) and said.startswith("rfflow ctl: ") and "usage:" not in said
    assert inbox.scan() == []


def test_help_exits_0(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["rfflow", "ctl", "--help"])
    assert ctl.main(["--help"]) == 0
    assert "rfflow ctl clone 0 lr=5e-4" in capsys.readouterr().out


def test_the_experiment_is_found_in_control_then_in_outputs(start, here, answered):
    (here / "outputs/sft/dead/control").mkdir(parents=True)
    old = start("outputs/sft/now/control")
    answered(old, lambda item: old.done(item, "ok"))
    assert ctl.main(["stop", "1"]) == 0
    near = start("control")
    answered(near, lambda item: near.done(item, "ok"))
    assert ctl.main(["stop", "1"]) == 0
    assert len(list((near.directory / "done").iterdir())) == 2


def test_several_experiments_are_listed_and_one_is_asked_for(start, answered, capsys):
    first, second = start("outputs/sft/1/control"), start("outputs/dpo/2/control")
    assert ctl.main(["stop", "1"]) == 1
    error = capsys.readouterr().err
    assert "--control outputs/sft/1/control" in error and "--control outputs/dpo/2/control" in error
    answered(second, lambda item: second.done(item, "ok"))
    assert ctl.main(["stop", "1", "--control", "outputs/dpo/2/control"]) == 0
    assert first.scan() == []


def test_no_experiment_is_said_and_nothing_is_written(here, capsys):
    assert ctl.main(["stop", "1"]) == 1
    assert "No experiment is running here" in capsys.readouterr().err
    (here / "control").mkdir()
    assert ctl.main(["stop", "1", "--control", "control"]) == 1
    assert "No running experiment answers" in capsys.readouterr().err
    assert ctl.main(["stop", "1", "--control", "nowhere"]) == 1
    assert os.listdir(here / "control") == []


def test_a_dropped_op_is_taken_at_the_first_look_however_quick_the_disk_is(start, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)
    inbox = start()
    for number in range(30):
        asking.drop(inbox.directory, {"op": "stop", "run": number})
        assert len(inbox.scan()) == 1


def test_ops_dropped_at_once_by_many_are_all_there_in_order(start):
    inbox = start()
    threads = [
        threading.Thread(target=asking.drop, args=(inbox.directory, {"op": "stop", "run": n})) for n in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    items = inbox.scan()
    assert sorted(item.ops[0].target.numbers[0] for item in items) == list(range(20))


def test_the_status_is_shown_as_a_table(start, capsys):
    inbox = start()
    assert ctl.main(["status"]) == 1
    runs = (
        RunStatus(0, "stopped", ("lr=1e-3",), 1, 4, 10, 40, {"loss": 0.51234, "eval_loss": 0.25}),
        RunStatus(1, "queued", ("peft.target_modules=[q_proj]",), parent=0),
    )
    StatusFile(inbox.directory).write(Status("outputs/sft/now", runs, waiting=True))
    assert ctl.main(["status"]) == 0
    out = capsys.readouterr().out
    assert "waiting for an op" in out
    assert "1/4" in out and "10/40" in out and "0.5123" in out and "peft.target_modules=[q_proj]" in out
    inbox.close()
    assert ctl.main(["status", "--control", str(inbox.directory)]) == 0
    assert "not running any more" in capsys.readouterr().out


def test_the_status_says_where_runs_train_where_that_is_a_question(start, capsys):
    inbox, runs = start(), (RunStatus(0, "running", ("lr=1e-3",), 1, 4, slot=1, since="now"), RunStatus(1, "queued"))
    for slots, cells in ((1, ["running", "1/4"]), (2, ["running", "1", "1/4"])):
        StatusFile(inbox.directory).write(Status("outputs/sft/now", runs, slots=slots))
        assert ctl.main(["status"]) == 0
        row = next(line.split() for line in capsys.readouterr().out.splitlines() if "lr=1e-3" in line)
        assert row[2 : 2 + len(cells)] == cells


def test_a_status_with_odd_values_is_shown_all_the_same(start, capsys):
    inbox = start()
    (inbox.directory / "status.yaml").write_text(yaml.safe_dump({"runs": [{"number": 1, "metrics": {"loss": None}}]}))
    assert ctl.main(["status"]) == 0


def test_the_command_line_is_quick_to_import():
    heavy = ("torch", "transformers", "watchdog.observers", "rich")
    script = f"import sys, rfflow.control.ctl; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"
