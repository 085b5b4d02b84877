"""One control directory, one experiment."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from rfflow.control.ownership import LOCK_NAME, Lock, Owner, living_owner, read_owner
from rfflow.errors import ConfigError


@pytest.fixture
def make_lock(tmp_path):
    locks = []

    def make(experiment):
        locks.append(Lock(tmp_path, experiment, sleep=lambda _: None))
        return locks[-1]

    yield make
    for lock in locks:
        lock.release()


def test_a_second_experiment_is_refused_and_told_who_the_first_is(tmp_path, make_lock):
    make_lock("outputs/sft/one").acquire()
    with pytest.raises(ConfigError, match=rf"process {os.getpid()} on .*experiment outputs/sft/one.*control\.dir="):
        make_lock("outputs/sft/two").acquire()
    assert living_owner(tmp_path) == Owner(os.getpid(), socket.gethostname(), "outputs/sft/one")


def test_a_released_directory_is_free(tmp_path, make_lock):
    first = make_lock("one")
    first.acquire()
    first.release()
    first.release()
    assert living_owner(tmp_path) is None
    assert list(tmp_path.iterdir()) == []
    make_lock("two").acquire()


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path, make_lock):
    script = (
        "import sys, time; from pathlib import Path; from rfflow.control.ownership import Lock\n"
        "lock = Lock(Path(sys.argv[1]), 'one'); lock.acquire(); print('held', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    assert living_owner(tmp_path).pid == process.pid
    with pytest.raises(ConfigError, match=f"process {process.pid}"):
        make_lock("two").acquire()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert read_owner(tmp_path).pid == process.pid  # the file is still there
    assert living_owner(tmp_path) is None
    make_lock("two").acquire()
    assert living_owner(tmp_path).experiment == "two"


def test_looking_whether_it_is_held_does_not_make_a_starting_experiment_fail(tmp_path):
    (tmp_path / LOCK_NAME).write_text("")
    looker = os.open(tmp_path / LOCK_NAME, os.O_RDONLY)
    fcntl.flock(looker, fcntl.LOCK_SH)
    lock = Lock(tmp_path, "one", sleep=lambda _: fcntl.flock(looker, fcntl.LOCK_UN))
    lock.acquire()
    lock.release()
    os.close(looker)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"[1]", b'{"pid": 1}', b"\xff"])
def test_a_lock_file_that_cannot_be_read_is_no_owner(tmp_path, make_lock, content):
    (tmp_path / LOCK_NAME).write_bytes(content)
    assert read_owner(tmp_path) is None
    make_lock("one").acquire()
    assert read_owner(tmp_path).experiment == "one"


def test_a_lock_that_is_a_symlink_is_not_followed(tmp_path, make_lock):
    (tmp_path / "precious").write_text("data")
    (tmp_path / LOCK_NAME).symlink_to("precious")
    with pytest.raises(ConfigError, match="cannot be used"):
        make_lock("one").acquire()
    assert (tmp_path / "precious").read_text() == "data"


def test_without_file_locks_the_process_decides(tmp_path, make_lock, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    owner = {"pid": os.getppid(), "host": socket.gethostname(), "experiment": "one"}
    (tmp_path / LOCK_NAME).write_text(json.dumps(owner))
    assert living_owner(tmp_path).experiment == "one"
    with pytest.raises(ConfigError, match="experiment one"):
        make_lock("two").acquire()
    (tmp_path / LOCK_NAME).write_text(json.dumps({**owner, "pid": gone.pid}))
    assert living_owner(tmp_path) is None
    make_lock("two").acquire()


def test_a_lock_file_deleted_under_the_owner_is_noticed(tmp_path, make_lock):
    lock = make_lock("one")
    assert not lock.is_intact()
    lock.acquire()
    assert lock.is_intact()
    (tmp_path / LOCK_NAME).unlink()
    assert not lock.is_intact()
    lock.acquire()
    assert lock.is_intact()
