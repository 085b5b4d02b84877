"""The control directory: every op file is answered exactly once, whatever is thrown at it."""

import contextlib
import logging
import os
import shutil
import socket
import tempfile
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from watchdog import events

from rfflow.control import filing
from rfflow.control.belonging import Marks
from rfflow.control.documents import MAX_BYTES
from rfflow.control.inbox import Inbox
from rfflow.control.ops import Stop
from rfflow.control.selection import Numbers
from rfflow.control.status import Status, StatusFile
from rfflow.errors import ConfigError


class Clock:
    def __init__(self):
        self.now = time.time()

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def inbox(tmp_path, clock):
    inbox = Inbox(tmp_path / "control", "outputs/sft/now", clock=clock)
    yield inbox
    inbox.close()


def drop(inbox, name, content="op: stop\nrun: 3\n"):
    """Put a file in place as a careful program does: written under another name, then renamed."""
    path = inbox.directory / name
    temporary = inbox.directory / ".temporary"
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    os.utime(temporary, ns=(10**18, 10**18))
    os.rename(temporary, path)
    return path


def answer(inbox, items):
    for item in items:
        if item.error is None:
            inbox.done(item, "Stopped run 3 after chunk 1.")
        else:
            inbox.reject(item, str(item.error))


def files(inbox, folder):
    return sorted(path.name for path in (inbox.directory / folder).iterdir())


def reason(inbox, name):
    return (inbox.directory / "rejected" / f"{name}.error").read_text()


def test_a_renamed_file_is_taken_at_the_first_look_and_ends_in_done_with_its_outcome(inbox):
    drop(inbox, "010-stop.yaml")
    (item,) = inbox.scan()
    assert item.ops == (Stop(Numbers((3,))),)
    assert inbox.scan() == []  # in hand until it is answered
    assert inbox.done(item, "Stopped run 3.") == inbox.directory / "done" / "010-stop.yaml"
    assert files(inbox, "done") == ["010-stop.yaml", "010-stop.yaml.outcome"]
    assert (inbox.directory / "done/010-stop.yaml.outcome").read_text() == "Stopped run 3.\n"
    assert inbox.scan() == []


def test_a_file_that_cannot_be_answered_yet_is_returned_again_as_it_then_stands(inbox):
    drop(inbox, "1.yaml")
    (item,) = inbox.scan()
    inbox.put_back(item)
    assert inbox.wait(0.0), "somebody who waits for files would sleep on it"
    drop(inbox, "1.yaml", "op: stop\nrun: 4\n")
    (item,) = inbox.scan()
    assert item.ops == (Stop(Numbers((4,))),) and inbox.scan() == []
    answer(inbox, [item])
    assert files(inbox, "done") == ["1.yaml", "1.yaml.outcome"]


def test_a_refused_file_ends_in_rejected_with_its_reason_and_a_log_line(inbox, clock, caplog):
    drop(inbox, "x.yml", "op: stpo\nrun: 3\n")
    clock.now += 1
    answer(inbox, inbox.scan())
    assert files(inbox, "rejected") == ["x.yml", "x.yml.error"]
    assert "op is 'stpo'. Did you mean 'stop'" in reason(inbox, "x.yml")
    assert "Refused x.yml" in caplog.text


@pytest.mark.parametrize("name", ["stop.YAML", "Stop.Yml"])
def test_an_ending_in_capitals_is_the_same_ending(inbox, name):
    """The person who wrote it waits for an answer."""
    drop(inbox, name)
    answer(inbox, inbox.scan())
    assert files(inbox, "done") == [name, f"{name}.outcome"]


@pytest.mark.parametrize("name", ["stop.yaml.txt", "stop.yml.TXT"])
def test_an_ending_that_an_editor_has_hung_on_is_answered(inbox, clock, name):
    drop(inbox, name)
    clock.now += 1
    answer(inbox, inbox.scan())
    assert files(inbox, "rejected") == [name, f"{name}.error"]
    assert reason(inbox, name) == f"It is called {name}. Op files end in .yaml: call it {name[:-4]}.\n"


def test_files_are_taken_in_the_byte_order_of_their_names(inbox):
    for name in ("b.yaml", "9.yaml", "10.yaml", "B.yml", "é.yaml", "a.yaml"):
        drop(inbox, name)
    assert [item.name for item in inbox.scan()] == ["10.yaml", "9.yaml", "B.yml", "a.yaml", "b.yaml", "é.yaml"]


def test_other_names_are_left_alone(inbox):
    for name in (".x.yaml", "x.yaml~", "x.txt", "status.yaml", "yaml"):
        drop(inbox, name, "op: [")
    assert inbox.scan() == []


def test_documents_are_in_order_and_one_bad_one_refuses_the_file(inbox, clock):
    drop(inbox, "a.yaml", "op: stop\nrun: 1\n---\nop: resume\nrun: 1\n---\n")
    (item,) = inbox.scan()
    assert [op.verb for op in item.ops] == ["stop", "resume"]
    drop(inbox, "b.yaml", "op: stop\nrun: 1\n---\nop: resume\nrun: one\n")
    clock.now += 1
    (item,) = inbox.scan()
    assert item.ops == ()
    assert str(item.error).startswith("Document 2 of 2: run is 'one'.")


# --- files that are still being written -------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["", "op: st", "op: stop\nrun: 3\n"])
def test_a_file_that_may_still_grow_is_left_for_the_next_look(inbox, clock, content):
    """Even where it can be read: the rest of `run: 35` may be on its way."""
    path = inbox.directory / "x.yaml"
    path.write_text(content)
    clock.now = path.stat().st_mtime + 0.01
    assert inbox.scan() == []
    path.write_text("op: stop\nrun: 35\n")
    clock.now += 0.01
    assert inbox.scan() == []
    clock.now = path.stat().st_mtime + 0.3
    assert [item.ops for item in inbox.scan()] == [(Stop(Numbers((35,))),)]


def test_a_file_that_stays_half_written_is_refused(inbox, clock):
    path = inbox.directory / "x.yaml"
    path.write_text("op: clone\nrun: 0\noverrides: [")
    clock.now = path.stat().st_mtime
    assert inbox.scan() == []
    clock.now += 0.3
    answer(inbox, inbox.scan())
    assert "not valid YAML" in reason(inbox, "x.yaml")


def test_an_empty_file_just_put_in_place_gets_time_to_be_filled(inbox, clock):
    path = drop(inbox, "x.yaml", "")
    clock.now = path.stat().st_ctime
    assert inbox.scan() == []
    clock.now += 0.3
    assert "empty" in str(inbox.scan()[0].error)


def test_a_file_from_a_server_whose_clock_is_ahead_is_taken_once_it_has_been_left_alone(inbox, clock):
    path = inbox.directory / "x.yaml"
    path.write_text("op: stop\nrun: 3\n")
    clock.now = path.stat().st_mtime - 3600
    assert inbox.scan() == []
    clock.now += 0.3
    assert len(inbox.scan()) == 1


def test_waiting_ends_when_a_young_file_is_old_enough(inbox, clock):
    path = inbox.directory / "x.yaml"
    path.write_text("op: stop\nrun: 3\n")
    clock.now = path.stat().st_mtime
    assert inbox.scan() == []
    assert inbox.wait(timeout=30)


# --- bad files --------------------------------------------------------------------------------------------------------


def make_directory(path):
    (path / "inside").mkdir(parents=True)


def make_link(path):
    target = path.with_name("target.txt")
    target.write_text("op: stop\nrun: 3\n")
    path.symlink_to(target)


def make_huge(path):
    with open(path, "wb") as file:
        file.truncate(100 * 1024**2)


def make_socket(path):
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)


def text(content):
    return lambda path: path.write_bytes(content)


BAD = [
    (make_directory, "It is a directory"),
    (make_link, "symbolic link"),
    (lambda path: path.symlink_to("nowhere"), "symbolic link"),
    (os.mkfifo, "named pipe"),
    (make_socket, "socket"),
    (make_huge, f"104857600 bytes. Allowed: up to {MAX_BYTES}"),
    (text(b""), "empty"),
    (text(b"# nothing\n---\n"), "empty"),
    (text(b"\xff\xfe\x00"), "not UTF-8 text: byte 0xff at position 0"),
    (text(b"op: stop\0"), "not valid YAML"),
    (text(b"op: [stop"), "not valid YAML"),
    (text(b"op: clone\nrun: 0\noverrides: [peft.target_modules=[q,v]]\n"), "quote an override that holds brackets"),
    (text(b"op: clone\nrun: 0\noverrides: [lr=1,2]\n"), "quote an override that holds a comma"),
    (text(b"[" * MAX_BYTES), "nested too deep"),
    (text(b"a: &a [x, x]\nb: &b [*a, *a]\nop: [*b, *b]\n"), "alias"),
    (text(b"op: stop\nop: delete\nrun: 1\n"), "'op' is given twice"),
    (text(b"op: !!python/object/apply:os.system [ls]\n"), "not valid YAML"),
    (text(b"op: 2020-99-99\n"), "cannot read"),
    (text(b"op: !!int ''\n"), "cannot read"),
    (text(b"op: stop\nrun: " + b"9" * 5000), "cannot read"),
    (text(b"op: stop\nrun: 1\n---\n" * 1500), "more than 1000 documents"),
    (text(b"op: clone\nrun: 0\noverrides: ['peft={_target_: os.system}']\n"), "may not name code"),
]


@pytest.mark.parametrize(("make", "message"), BAD, ids=[message for _, message in BAD])
def test_a_bad_file_is_refused_with_its_reason_and_the_good_one_beside_it_is_not(inbox, clock, make, message):
    make(inbox.directory / "bad.yaml")
    drop(inbox, "good.yaml")
    clock.now += 1
    answer(inbox, inbox.scan())
    assert message in reason(inbox, "bad.yaml")
    assert os.path.lexists(inbox.directory / "rejected" / "bad.yaml")
    assert "good.yaml" in files(inbox, "done")
    assert inbox.scan() == []


def test_a_huge_file_is_refused_without_being_read(inbox, monkeypatch):
    make_huge(inbox.directory / "x.yaml")
    monkeypatch.setattr(os, "read", lambda *_: pytest.fail("it was read"))
    assert "104857600" in str(inbox.scan()[0].error)


def test_a_file_without_read_permission_is_refused(inbox, clock, monkeypatch):
    path = drop(inbox, "x.yaml")
    path.chmod(0)
    if os.geteuid() == 0:  # root reads everything
        real = os.open

        def refuse(name, *args, **kwargs):
            if str(name) == str(path):
                raise PermissionError(13, "Permission denied")
            return real(name, *args, **kwargs)

        monkeypatch.setattr(os, "open", refuse)
    clock.now += 1
    answer(inbox, inbox.scan())
    assert reason(inbox, "x.yaml") == "It cannot be read: Permission denied.\n"


@pytest.mark.parametrize("step", ["stat", "open"])
def test_a_file_that_vanishes_while_it_is_looked_at_is_no_trouble(inbox, monkeypatch, step):
    path = drop(inbox, "x.yaml")
    real = getattr(os, step)

    def vanish(name, *args, **kwargs):
        if str(name) == str(path):
            path.unlink(missing_ok=True)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(os, step, vanish)
    assert inbox.scan() == []


def test_a_file_that_changes_while_it_is_read_is_left_for_the_next_look(inbox, monkeypatch):
    path = drop(inbox, "x.yaml")
    real = os.read

    def change(*args):
        content = real(*args)
        with open(path, "a") as file:
            file.write("5\n")
        return content

    monkeypatch.setattr(os, "read", change)
    assert inbox.scan() == []


def test_odd_file_names_are_answered_too(inbox):
    names = [
        b"new\nline.yaml",
        b"\xff\xfe.yaml",
        b"x" * 250 + b".yaml",
        b" .yaml",
        b"-rf.yaml",
        "ü\u202e.yaml".encode(),
    ]
    for name in names:
        drop(inbox, os.fsdecode(name))
    answer(inbox, inbox.scan())
    assert {os.fsencode(name) for name in files(inbox, "done")} >= set(names)
    for name in names:
        drop(inbox, os.fsdecode(name))
    answer(inbox, inbox.scan())
    assert inbox.scan() == []
    assert len(files(inbox, "done")) == 4 * len(names)


# --- answered once, whatever happens to the file ----------------------------------------------------------------------


def test_an_earlier_file_of_the_same_name_is_kept(inbox, clock):
    for run in (1, 2, 3):
        drop(inbox, "stop.yaml", f"op: stop\nrun: {run}\n")
        answer(inbox, inbox.scan())
    texts = [(inbox.directory / "done" / name).read_text() for name in ("stop.yaml", "stop.2.yaml", "stop.3.yaml")]
    assert texts == ["op: stop\nrun: 1\n", "op: stop\nrun: 2\n", "op: stop\nrun: 3\n"]


@pytest.mark.parametrize("operation", ["write_whole", "replace", "rename"])
def test_a_file_has_its_own_name_however_often_the_process_dies_while_it_is_filed(inbox, monkeypatch, operation):
    """Whoever waits for the answer looks under that name; and no note stands without its file, or half written."""

    def die(*_, **__):
        raise KeyboardInterrupt

    drop(inbox, "x.yaml")
    for _ in range(3):
        (item,) = inbox.scan()
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(filing if operation == "write_whole" else os, operation, die)
            inbox.done(item, "Stopped.")
    (item,) = inbox.scan()
    assert inbox.done(item, "Stopped.") == inbox.directory / "done/x.yaml"
    assert files(inbox, "done") == ["x.yaml", "x.yaml.outcome"]


def test_a_note_of_another_answer_is_not_written_over(inbox):
    (inbox.directory / "done/x.yaml.outcome").write_text("Stopped another.\n")
    drop(inbox, "x.yaml")
    answer(inbox, inbox.scan())
    assert files(inbox, "done") == ["x.2.yaml", "x.2.yaml.outcome", "x.yaml.outcome"]


def test_the_same_file_put_back_from_done_is_a_new_request(inbox):
    drop(inbox, "x.yaml")
    answer(inbox, inbox.scan())
    os.rename(inbox.directory / "done/x.yaml", inbox.directory / "x.yaml")
    assert len(inbox.scan()) == 1


def test_a_file_removed_after_it_was_read_is_filed_all_the_same(inbox):
    drop(inbox, "x.yaml").unlink()
    path = drop(inbox, "x.yaml")
    (item,) = inbox.scan()
    path.unlink()
    inbox.done(item, "Stopped.")
    assert (inbox.directory / "done/x.yaml").read_text() == "op: stop\nrun: 3\n"


def test_a_file_replaced_after_it_was_read_is_another_request(inbox):
    drop(inbox, "x.yaml", "op: stop\nrun: 1\n")
    (first,) = inbox.scan()
    drop(inbox, "x.yaml", "op: stop\nrun: 22\n")
    (second,) = inbox.scan()
    inbox.done(first, "Stopped 1.")
    inbox.done(second, "Stopped 22.")
    assert (inbox.directory / "done/x.yaml").read_text() == "op: stop\nrun: 1\n"
    assert (inbox.directory / "done/x.2.yaml").read_text() == "op: stop\nrun: 22\n"


def test_where_moving_fails_the_op_is_not_applied_again_and_moving_is_tried_again(inbox, monkeypatch, caplog):
    drop(inbox, "x.yaml")
    (item,) = inbox.scan()
    with monkeypatch.context() as patch:

        def refuse(*_, **__):
            raise OSError(30, "Read-only file system")

        patch.setattr(os, "rename", refuse)
        inbox.done(item, "Stopped.")
        assert inbox.scan() == [] == inbox.scan()
        assert len(files(inbox, "done")) == 1  # the outcome, once
    assert caplog.text.count("Read-only file system") == 1
    assert inbox.scan() == []
    assert files(inbox, "done") == ["x.yaml", "x.yaml.outcome"]
    os.rename(inbox.directory / "done/x.yaml", inbox.directory / "x.yaml")
    assert len(inbox.scan()) == 1


def test_answering_twice_is_our_own_mistake(inbox):
    drop(inbox, "x.yaml")
    (item,) = inbox.scan()
    inbox.done(item, "Stopped.")
    with pytest.raises(AssertionError):
        inbox.done(item, "Stopped.")


def test_files_that_were_there_before_and_files_in_hand_at_a_crash_are_seen_by_the_next_experiment(tmp_path):
    first = Inbox(tmp_path)
    drop(first, "x.yaml")
    assert len(first.scan()) == 1
    first.close()
    second = Inbox(tmp_path)
    assert len(second.scan()) == 1
    second.close()


def test_a_thousand_files_are_taken_in_order(inbox):
    for number in reversed(range(1000)):
        (inbox.directory / f"{number:04}.yaml").write_text(f"op: stop\nrun: {number}\n")
        os.utime(inbox.directory / f"{number:04}.yaml", (1, 1))
    items = inbox.scan()
    assert [item.ops[0].target.numbers for item in items] == [(number,) for number in range(1000)]
    answer(inbox, items)
    assert inbox.scan() == []
    assert len(files(inbox, "done")) == 2000


# --- the directory ----------------------------------------------------------------------------------------------------


def test_the_directory_deleted_meanwhile_is_made_again_and_still_ours(inbox, caplog):
    shutil.rmtree(inbox.directory)
    assert inbox.scan() == []
    assert "was deleted. It has been made again" in caplog.text
    drop(inbox, "x.yaml")
    answer(inbox, inbox.scan())
    assert "x.yaml" in files(inbox, "done")
    with pytest.raises(ConfigError, match="belongs to another"):
        Inbox(inbox.directory)


def test_the_directory_deleted_while_a_file_is_in_hand(inbox):
    drop(inbox, "x.yaml")
    (item,) = inbox.scan()
    shutil.rmtree(inbox.directory)
    inbox.done(item, "Stopped.")
    assert (inbox.directory / "done/x.yaml").read_text() == "op: stop\nrun: 3\n"


def test_a_directory_that_cannot_be_made_again_is_said_once_and_stops_nothing(inbox, caplog):
    shutil.rmtree(inbox.directory)
    inbox.directory.write_text("a file now")
    assert inbox.scan() == [] == inbox.scan()
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1
    inbox.directory.unlink()
    inbox.scan()
    drop(inbox, "x.yaml")
    assert len(inbox.scan()) == 1


def test_another_experiment_that_took_the_deleted_directory_over_answers(inbox):
    shutil.rmtree(inbox.directory)
    other = Inbox(inbox.directory, "outputs/other")
    drop(inbox, "x.yaml")
    assert inbox.scan() == []
    assert len(other.scan()) == 1
    other.close()


def test_a_path_that_is_no_directory_is_a_clear_error(tmp_path):
    (tmp_path / "control").write_text("")
    with pytest.raises(ConfigError, match=r"cannot be used.*Not a directory"):
        Inbox(tmp_path / "control")


# --- waiting ----------------------------------------------------------------------------------------------------------


def test_waiting_without_news_ends_with_the_timeout(inbox):
    assert inbox.wait(timeout=0.01) is False


@pytest.mark.parametrize("polling", [False, True])
def test_waiting_ends_when_a_file_comes(tmp_path, polling):
    inbox = Inbox(tmp_path, polling=polling)
    inbox.wait(timeout=0.01)  # the observer is up now
    thread = threading.Thread(target=drop, args=(inbox, "x.yaml"))
    thread.start()
    assert inbox.wait(timeout=30)
    thread.join()
    assert len(inbox.scan()) == 1
    inbox.close()


def test_waiting_ends_at_once_for_a_file_that_came_before_anybody_watched(inbox):
    drop(inbox, "x.yaml")
    assert inbox.wait(timeout=30)


def test_a_lost_event_costs_time_and_nothing_else(inbox, monkeypatch):
    monkeypatch.setattr("rfflow.control.inbox._LONGEST_WAIT", 0.01)
    inbox.wait(timeout=0.01)  # the observer is up now
    monkeypatch.setattr(inbox._watch, "dispatch", lambda event: None)
    drop(inbox, "x.yaml")
    assert inbox.wait(timeout=None)


def test_an_op_behind_another_that_was_just_answered_is_heard_at_once(inbox, monkeypatch):
    """Its event comes late: of a file that has left, watchdog waits for where it went, and for longer here."""
    grouper = pytest.importorskip("watchdog.observers.inotify_move_event_grouper").InotifyMoveEventGrouper
    monkeypatch.setattr(grouper, "delay", 20.0)
    inbox.wait(timeout=0.01)
    drop(inbox, "1.yaml")
    answer(inbox, inbox.scan())
    threading.Timer(0.1, drop, (inbox, "2.yaml")).start()
    begun = time.monotonic()
    while not (items := inbox.scan()):
        inbox.wait(timeout=30)
    assert [item.name for item in items] == ["2.yaml"] and time.monotonic() - begun < 4


def test_waiting_ends_when_woken_even_if_that_was_before(inbox):
    inbox.wake()
    assert inbox.wait(timeout=30)


@pytest.mark.parametrize(
    ("event", "wakes"),
    [
        (events.FileOpenedEvent("x.yaml"), False),
        (events.FileClosedNoWriteEvent("x.yaml"), False),
        (events.FileMovedEvent(".status.yaml.new", "status.yaml"), False),
        (events.FileCreatedEvent("x.yaml"), True),
        (events.FileMovedEvent(".x", "x.yaml"), True),
        (events.FileClosedEvent("x.yml"), True),
    ],
)
def test_our_own_reading_does_not_wake_us(inbox, event, wakes):
    inbox._watch.dispatch(event)
    assert inbox._watch.wait(0) is wakes


def test_writing_the_status_does_not_wake(inbox):
    inbox.wait(timeout=0.01)
    drop(inbox, "status.yaml", "runs: []")
    os.listdir(inbox.directory)
    assert inbox.wait(timeout=0.2) is False


def test_waiting_works_after_the_directory_was_deleted(inbox):
    inbox.wait(timeout=0.01)
    shutil.rmtree(inbox.directory)
    assert inbox.wait(timeout=30)
    inbox.scan()
    inbox.wait(timeout=0.01)
    drop(inbox, "x.yaml")
    assert inbox.wait(timeout=30)
    assert len(inbox.scan()) == 1


def test_without_inotify_the_directory_is_polled(inbox, monkeypatch, caplog):
    def refuse(self):
        raise OSError(28, "inotify watch limit reached")

    monkeypatch.setattr("watchdog.observers.Observer.start", refuse)
    inbox.wait(timeout=0.01)
    assert "watch limit" in caplog.text
    drop(inbox, "x.yaml")
    assert inbox.wait(timeout=30)


# --- anything at all --------------------------------------------------------------------------------------------------

_document = st.sampled_from(
    [b"op: stop\nrun: 3\n", b"op: clone\nrun: 0\noverrides: [lr=1]\n", b"op: resume\nrun: all\n---\nop: stop\nrun: 1\n"]
)
_content = _document | st.binary(max_size=40) | st.text(max_size=40).map(lambda t: t.encode("utf-8", "surrogatepass"))
_name = (
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20)
    .filter(lambda name: not name.startswith("."))
    .map(lambda name: name + ".yaml")
    .filter(lambda name: name != "status.yaml")
)
_happening = st.tuples(st.sampled_from(["drop", "write", "mkdir", "remove", "scan", "answer", "age"]), _name, _content)


@settings(max_examples=150, deadline=None)
@given(st.lists(_happening, max_size=25))
def test_every_file_ends_exactly_once_in_done_or_rejected(happenings):
    """Files are dropped, written slowly, replaced, removed; scans and answers come in between."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as directory:
        inbox = Inbox(Path(directory) / "control", clock=clock)
        in_hand, answered = [], 0

        def scan():
            items = inbox.scan()
            names = [os.fsencode(item.name) for item in items]
            assert names == sorted(names)
            assert all((item.error is None) == bool(item.ops) for item in items)
            in_hand.extend(items)

        for what, name, content in happenings:
            path = inbox.directory / name
            if what == "drop" and not path.is_dir():
                drop(inbox, name, content)
            elif what == "write" and not path.is_dir():
                path.write_bytes(content)
            elif what == "mkdir":
                with contextlib.suppress(FileExistsError):
                    path.mkdir()
            elif what == "remove" and path.is_file():
                path.unlink()
            elif what == "scan":
                scan()
            elif what == "age":
                clock.now += 1
            elif what == "answer" and in_hand:
                answer(inbox, [in_hand.pop(0)])
                answered += 1
        clock.now = time.time() + 10
        scan()
        answer(inbox, in_hand)
        answered += len(in_hand)
        scan()
        inbox.close()
        assert sorted(os.listdir(inbox.directory)) == ["done", "rejected"]
        notes = [
            name
            for folder in ("done", "rejected")
            for name in files(inbox, folder)
            if name.endswith((".outcome", ".error"))
        ]
        originals = [name for folder in ("done", "rejected") for name in files(inbox, folder) if name.endswith(".yaml")]
        assert len(notes) == len(originals) == answered


def test_a_name_in_the_log_is_no_command_to_a_terminal(inbox, clock, caplog):
    drop(inbox, "\x1b[2J\nRefused.yaml", "op: no\n")
    clock.now += 1
    answer(inbox, inbox.scan())
    assert r"Refused \x1b[2J\nRefused.yaml: " in caplog.text


# --- links and strangers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "done", "rejected"])
def test_a_link_in_place_of_a_directory_is_not_followed(tmp_path, name):
    """Whoever can write into the control directory would have us write where only we can."""
    outside, control = tmp_path / "outside", tmp_path / "control"
    outside.mkdir()
    if name:
        control.mkdir()
    os.symlink(outside, control / name if name else control)
    with pytest.raises(ConfigError, match="symbolic link, which is not followed"):
        Inbox(control)
    assert not list(outside.iterdir())


@pytest.mark.parametrize("folder", ["done", "rejected"])
def test_a_link_that_takes_the_place_of_a_directory_later_is_not_followed(inbox, clock, tmp_path, caplog, folder):
    outside = tmp_path / "outside"
    outside.mkdir()
    drop(inbox, "x.yaml", "op: stop\nrun: 3\n" if folder == "done" else "op: no\n")
    clock.now += 1
    items = inbox.scan()
    shutil.rmtree(inbox.directory / folder)
    os.symlink(outside, inbox.directory / folder)
    answer(inbox, items)
    assert "symbolic link, which is not followed" in caplog.text
    assert not list(outside.iterdir()) and inbox.scan() == []
    (inbox.directory / folder).unlink()
    assert inbox.scan() == [] and "x.yaml" in files(inbox, folder)


def test_a_link_that_takes_the_place_of_the_control_directory_is_not_followed(inbox, tmp_path, caplog):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x.yaml").write_text("op: stop\nrun: 3\n")
    inbox.directory.rename(tmp_path / "away")
    os.symlink(outside, inbox.directory)
    assert inbox.scan() == []
    assert "symbolic link" in caplog.text and [path.name for path in outside.iterdir()] == ["x.yaml"]


@pytest.mark.parametrize("name", [".x.yaml.outcome.new", "x.yaml.outcome", ".x.yaml.new"])
def test_links_inside_done_are_not_written_through(inbox, tmp_path, name):
    secret = tmp_path / "secret"
    secret.write_text("untouched")
    path = drop(inbox, "x.yaml")
    (item,) = inbox.scan()
    os.symlink(secret, inbox.directory / "done" / name)
    path.unlink()  # so that its content is written anew
    inbox.done(item, "untouched")
    assert secret.read_text() == "untouched"
    assert any(name.endswith(".yaml") for name in files(inbox, "done"))


def test_the_status_is_not_written_through_a_link(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("untouched")
    for name in ("status.yaml", ".status.yaml.new", ".status.yaml.tmp"):
        os.symlink(secret, tmp_path / name)
    StatusFile(tmp_path).write(Status("outputs/sft/now"))
    assert secret.read_text() == "untouched" and not (tmp_path / "status.yaml").is_symlink()


def test_folders_of_another_user_are_not_used(tmp_path, monkeypatch):
    """He could read what is filed there, and put it back as ops."""
    (tmp_path / "done").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: os.stat(tmp_path).st_uid + 1)
    monkeypatch.setattr("rfflow.control.belonging.marks_in", lambda _: Marks(os.geteuid(), True))
    with pytest.raises(ConfigError, match="It belongs to another user"):
        Inbox(tmp_path)


def test_where_a_mount_gives_every_file_one_owner_that_is_ours(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: os.stat(tmp_path).st_uid + 1)
    Inbox(tmp_path).close()
