"""Whoever starts it, an experiment is one process."""

from __future__ import annotations

import ast
import logging
import multiprocessing
import resource
import subprocess
import sys
import zipapp
from pathlib import Path

import pytest

from rfflow.errors import ConfigError
from rfflow.launch import process
from rfflow.launch.process import be_alone

BATCH = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
LSF = {"LSB_JOBID": "7", "LSB_DJOB_RANKFILE": "gone", "JSM_NAMESPACE_LOCAL_RANK": "0", "JSM_NAMESPACE_SIZE": "2"}
TORCHRUN = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "none",
}


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({**TORCHRUN, "WORLD_SIZE": "2"}, "2 processes: WORLD_SIZE is 2, as torchrun and accelerate launch set it"),
        ({**BATCH, "SLURM_STEP_NUM_TASKS": "4"}, "4 processes: SLURM_STEP_NUM_TASKS is 4, as srun sets it"),
        ({**BATCH, "SLURM_PROCID": "3"}, "4 processes: SLURM_NTASKS is 4 and SLURM_PROCID 3"),
        ({"OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_RANK": "0"}, "8 processes: OMPI_COMM_WORLD_SIZE is 8"),
        ({"PMI_SIZE": "2"}, "2 processes: PMI_SIZE is 2"),
        ({"MV2_COMM_WORLD_SIZE": "2"}, "2 processes: MV2_COMM_WORLD_SIZE is 2"),
        ({"ACCELERATE_USE_FSDP": "true"}, "a part of FSDP: ACCELERATE_USE_FSDP is true"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "a part of DeepSpeed: ACCELERATE_USE_DEEPSPEED is true"),
    ],
)
def test_one_of_several_processes_is_refused(environ: dict[str, str], said: str) -> None:
    """They would train the same runs into the same directory, or wait for one another for ever."""
    before = dict(environ)
    with pytest.raises(ConfigError) as refused:
        be_alone(environ)
    assert str(refused.value).startswith(f"rfflow was started as {said}")
    assert "python -m rfflow" in str(refused.value) and "unset " in str(refused.value)
    assert environ == before


@pytest.mark.parametrize(
    ("environ", "ignored"),
    [
        (TORCHRUN, "RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT"),
        ({"RANK": "3", "MASTER_ADDR": "10.0.0.9", "WORLD_SIZE": ""}, "RANK, WORLD_SIZE, MASTER_ADDR"),
        (BATCH, ""),
        ({"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, ""),
        ({"OMPI_COMM_WORLD_SIZE": "1", "PMI_SIZE": "1"}, ""),
        ({"ACCELERATE_USE_FSDP": "false", "ACCELERATE_MIXED_PRECISION": "no"}, ""),
        ({}, ""),
    ],
    ids=["torchrun", "left over", "sbatch", "srun", "mpirun", "accelerate launch", "plain"],
)
def test_what_is_said_to_a_single_process_is_ignored(
    environ: dict[str, str], ignored: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Libraries would set up communication by it, or count on processes that are not there."""
    environ = dict(environ)
    with caplog.at_level(logging.INFO):
        be_alone(environ)
    assert environ == {name: value for name, value in environ.items() if name not in TORCHRUN}
    assert [record.getMessage() for record in caplog.records] == (
        [f"Ignored, since an experiment is one process: {ignored}"] if ignored else []
    )


@pytest.mark.parametrize("environ", [BATCH, LSF], ids=["SLURM", "LSF"])
def test_fabric_counts_on_no_other_process(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """In a batch script schedulers say what was asked for, and Fabric would look for it."""
    from lightning_fabric.utilities.rank_zero import rank_zero_only

    from rfflow.config.spec import ExperimentSpec
    from rfflow.engine.callbacks import make_fabric

    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(rank_zero_only, "rank", 3)  # loggers of another rank write nothing
    fabric = make_fabric(ExperimentSpec(name="x", accelerator="cpu"))
    assert (fabric.world_size, fabric.global_rank, rank_zero_only.rank) == (1, 0, 0)


def test_as_many_files_may_be_open_as_the_system_grants(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run keeps its log and its curves open; shells grant 1024, some 256."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    monkeypatch.setattr(process, "_MANY", 300)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        process.allow_open_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (300, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (400, hard))
        process.allow_open_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (400, hard)
        process.check_open_files(190, 2)
        with pytest.raises(ConfigError, match=r"200 runs keep 400 files open .* may open 400 in all.*ulimit -n 420"):
            process.check_open_files(200, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


PROGRAMS = {
    "-c": ("-c", "from rfflow.checkpointing.provenance import program; print(program())"),
    "a folder": ("{here}/app",),
    "an archive": ("{here}/app.pyz",),
}


def test_how_python_was_told_to_run_a_program(tmp_path: Path) -> None:
    """So that `resume=` can do so again; of what was typed nothing is there any more."""
    code = "from rfflow.checkpointing.provenance import program; print(program())"
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__main__.py").write_text(code)
    zipapp.create_archive(tmp_path / "app")
    said = {}
    for name, words in PROGRAMS.items():
        command = [sys.executable, *(word.format(here=tmp_path) for word in words)]
        shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        said[name] = " ".join(ast.literal_eval(shown)).replace(str(tmp_path), "here")
    assert said == {"-c": "", "a folder": "here/app", "an archive": "here/app.pyz"}


def test_what_transformers_reads_must_be_there(tmp_path: Path) -> None:
    command = [sys.executable, "-OO", "-m", "rfflow", "+recipe=sft"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 1 and ended.stderr.startswith("python -OO (PYTHONOPTIMIZE=2) takes away the docstrings")
    assert not list(tmp_path.iterdir())


def test_a_worker_does_not_begin_the_experiment_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It imports the script that was started, which may do all it does without asking whether it is the main one."""
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(ConfigError, match=r'imports .* again.* if __name__ == "__main__":'):
        process.settle()
