"""What tests of trackers share."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from rfflow.runs.experiment import Experiment
from tests.tracking.story import FOUR, make_experiment


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    """Make four runs."""
    return make_experiment(tmp_path / "outputs/sft/now", *FOUR)


@pytest.fixture
def nowhere() -> str:
    """Return an address where nobody answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"
