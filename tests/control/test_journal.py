"""The journal of ops."""

import json

import pytest

from rfflow.control.journal import Entry, Journal
from rfflow.errors import ConfigError


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "experiment" / "ops.jsonl")


STOPPED = Entry("stop", 3, "applied", "Stopped.", file="010.yaml", chunk=1)
REFUSED = Entry("clone", None, "refused", "typo\nin \ud800 an överride", by="policy/halving")


def test_what_is_written_is_read_back_in_order(journal):
    assert journal.read() == []
    journal.append(STOPPED)
    journal.append(REFUSED, STOPPED)
    assert journal.read() == [STOPPED, REFUSED, STOPPED]
    first = json.loads(journal.path.read_text().splitlines()[0])
    assert list(first) == [
        "op",
        "run",
        "outcome",
        "detail",
        "by",
        "file",
        "stamp",
        "chunk",
        "clone",
        "is_warm",
        "slot",
        "time",
    ]
    assert first["by"] == "person" and first["time"].endswith("+00:00")


def test_a_line_torn_by_a_crash_at_any_byte_costs_that_line_alone(journal, caplog):
    journal.append(STOPPED)
    whole = journal.path.read_bytes()
    journal.append(REFUSED)
    for end in range(len(whole), len(journal.path.read_bytes())):
        path = journal.path.with_name(f"{end}.jsonl")
        path.write_bytes(journal.path.read_bytes()[:end])
        torn = Journal(path)
        kept = torn.read()
        assert kept[:1] == [STOPPED] and len(kept) <= 2
        torn.append(STOPPED)
        assert torn.read() == [*kept, STOPPED]
        assert all(json.loads(line) for line in path.read_text().splitlines())
    assert "torn line" in caplog.text


def test_lines_from_another_hand_or_another_version_do_not_hide_the_others(journal, caplog):
    journal.append(STOPPED)
    with open(journal.path, "ab") as file:
        file.write(
            b"note to self\n[1]\n{}\n\xff\n"
            + json.dumps({"op": "stop", "run": 1, "outcome": "applied", "new": 1}).encode()
        )
    journal.append(STOPPED)
    assert [entry.run for entry in journal.read()] == [3, 1, 3]
    assert "line 2 is not an entry" in caplog.text


def test_a_link_in_its_place_is_neither_read_nor_written_through(journal, tmp_path):
    other = tmp_path / "other"
    other.write_text("untouched\n")
    journal.path.parent.mkdir()
    journal.path.symlink_to(other)
    with pytest.raises(OSError):
        journal.append(STOPPED)
    with pytest.raises(ConfigError, match="cannot be read"):
        journal.read()
    assert other.read_text() == "untouched\n"
