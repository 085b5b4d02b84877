"""What every test stands on: one thread, no network, caches of its own, and a tiny model with rows to train on."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support.chance import drawn_anew

# Set before any library reads them, and inherited by the processes that tests start. The caches must not be the
# user's own: a test has to see the same thing on every machine, and leave nothing behind.
_CACHES = Path(tempfile.mkdtemp(prefix="rfflow-tests-"))
for _name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_ASSETS_CACHE", "HF_MODULES_CACHE", "TRANSFORMERS_CACHE"):
    os.environ.pop(_name, None)
os.environ |= {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HOME": str(_CACHES / "huggingface"),
    "RFFLOW_CACHE": str(_CACHES / "rfflow"),
}


# No deadlines and no complaints about slow draws: what they say depends on how busy the machine is.
_patient = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None, "print_blob": True}
settings.register_profile("usual", derandomize=True, **_patient)
settings.register_profile("anew", **_patient)
settings.load_profile("anew" if drawn_anew() else "usual")


def pytest_unconfigure() -> None:
    """Remove the caches of this session."""
    shutil.rmtree(_CACHES, ignore_errors=True)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a two-layer Llama with its tokenizer; do not write into it."""
    import torch

    from tests.support.tiny import make_model

    torch.set_num_threads(1)
    return make_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSONL file of 96 rows with prompt and completion; do not write to it."""
    from tests.support.tiny import make_data

    return make_data(tmp_path_factory.mktemp("tiny") / "sums.jsonl")
