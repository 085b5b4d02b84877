"""Joins a Ray cluster, and says before anything trains what would not work there. Imports Ray when it is called."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rfflow.checkpointing.provenance import versions
from rfflow.config.spec import ExperimentSpec
from rfflow.errors import ConfigError

log = logging.getLogger(__name__)

HOW = (
    "How to start one: ray start --head on a machine, and ray start --address=THAT_MACHINE:6379 on the others "
    "(docs/devices.md)"
)
_TOKEN = "What all machines of a cluster share is the file ~/.ray/auth_token, or the variable RAY_AUTH_TOKEN."
_MODE = "RAY_AUTH_MODE"
"""Says, to who joins a cluster and to who starts one, whether there are tokens."""
_PROBE = 120.0
"""Seconds that a machine is given to answer: a first process of Python starts there."""
_HEAD = 10.0
"""Those that the head is given, which is running."""


@dataclass(frozen=True)
class Cluster:
    """Where actors may stand."""

    count: int
    """How many."""
    demands: Mapping[str, Any]
    """What each of them asks Ray for."""
    environment: Mapping[str, str]
    """What each of them finds in its environment."""
    word: str
    """What people call one of these devices."""


@dataclass(frozen=True)
class _Answer:
    """What a machine says of itself."""

    host: str
    versions: Mapping[str, str]
    sees_directory: bool
    sees_here: bool
    """Whether the directory is there in which the command was started."""


def join_cluster(spec: ExperimentSpec, root: Path, environ: Mapping[str, str] = os.environ) -> Cluster:
    """Connect to the cluster that ``engine.cluster`` names, and look whether an experiment can train there.

    Args:
        spec: says which cluster, and how many devices of it.
        root: the experiment's directory, which every machine must see.
        environ: what of it concerns libraries is handed on.

    Raises:
        ConfigError: naming what is not as it must be.
    """
    _connect(str(spec.cluster))
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    cluster = plan(spec, ray.cluster_resources(), len(nodes), environ)
    with _marker(root) as marker:
        answers = _ask([node["NodeID"] for node in nodes], marker)
        check_machines(answers, [answer for answer in answers if _replied(marker, answer.host)], root)
    log.info(
        "%d %s of a Ray cluster of %d %s: %s",
        cluster.count,
        "device" if cluster.count == 1 else "devices",
        len(nodes),
        "machine" if len(nodes) == 1 else "machines",
        cluster.word,
    )
    return cluster


def plan(spec: ExperimentSpec, resources: Mapping[str, float], machines: int, environ: Mapping[str, str]) -> Cluster:
    """Return how many actors there will be, and what each asks for.

    Args:
        spec: what was asked for.
        resources: what the cluster has, by Ray's names.
        machines: how many are in it.
        environ: this process's environment.

    Raises:
        ConfigError: if it has not got that many.
    """
    gpus, cores = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
    is_gpu = gpus > 0 and spec.accelerator in ("auto", "cuda", "gpu")
    there = gpus if is_gpu else cores
    word = "GPU" if is_gpu else "core"
    asked = spec.devices
    if isinstance(asked, tuple):
        raise ConfigError(
            f"engine.devices is {list(asked)}, which are places on one machine, and engine.cluster is "
            f"{spec.cluster!r}. Allowed with a cluster: auto, or how many."
        )
    count = (gpus if is_gpu else machines) if asked == "auto" else asked
    if count > there:
        raise ConfigError(f"engine.devices is {count}, but the cluster has {there} {word}{'' if there == 1 else 's'}.")
    handed_on = {name: value for name, value in environ.items() if name.startswith(HANDED_ON) and name not in KEPT}
    if is_gpu:
        return Cluster(count, {"num_gpus": 1, "num_cpus": min(1, cores)}, handed_on, "a GPU each")
    # Ray would set it, to what it has given the actor; the number of threads decides about the bits.
    threads = environ.get("OMP_NUM_THREADS") or str(max(1, cores // count))
    demands = {"num_cpus": 1, "scheduling_strategy": "SPREAD"}
    return Cluster(
        count,
        demands,
        {**handed_on, "OMP_NUM_THREADS": threads},
        f"CPU, {threads} {'thread' if threads == '1' else 'threads'} each",
    )


HANDED_ON = (
    "HF_", "HUGGING", "TRANSFORMERS_", "TOKENIZERS_", "DATASETS_", "ACCELERATE_", "TRL_", "PEFT_", "TORCH", "PYTORCH_",
    "OMP_", "MKL_", "CUBLAS_", "NVIDIA_TF32", "RFFLOW_", "PYTHONHASHSEED", "WANDB_", "MLFLOW_", "TRACKIO_",
)  # fmt: skip
"""How variables begin that an actor finds as they are here. They go to it directly, and nothing of Ray's shows them."""
KEPT = ("TORCHELASTIC_RUN_ID", "TORCHINDUCTOR_CACHE_DIR")


def check_machines(answers: list[_Answer], replied: list[_Answer], root: Path) -> None:
    """Check what the machines have said of themselves.

    Args:
        answers: of all machines.
        replied: of those whose reply, a file beside the experiment's, is seen here.
        root: the experiment's directory.

    Raises:
        ConfigError: naming the machine and what differs.
    """
    here = versions()
    for answer in answers:
        others = {name: answer.versions.get(name) for name in here if answer.versions.get(name) != here[name]}
        if others:
            words = ", ".join(f"{name} {there or 'is missing'} (here {here[name]})" for name, there in others.items())
            raise ConfigError(
                f"On {answer.host} there is {words}. Runs move between machines, so all must have the same: install "
                "them there by the same constraints file, and start Ray there again."
            )
        if not (answer.sees_directory and answer in replied):
            raise ConfigError(
                f"The experiment's directory {root} is not shared with {answer.host}: what one machine writes there "
                "the other does not see, and runs move as their checkpoints. Put it on a disk that all machines "
                "mount under the same path: hydra.sweep.dir=/shared/..."
            )
        if not answer.sees_here:
            raise ConfigError(
                f"{answer.host} has no directory {Path.cwd()}. Start the command in one that all machines share, so "
                "that relative paths of models and data, and your own code, mean the same there."
            )


def _connect(address: str) -> None:
    # Ray reads these when it is imported.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "error")
    if address == "local":
        os.environ.setdefault("RAY_worker_niceness", "0")
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            f"engine.cluster is {address!r}, and Ray is not installed: pip install 'rfflow[ray]'."
        ) from error
    from ray.exceptions import AuthenticationError

    for name in ("ray", "ray.serve"):
        logging.getLogger(name).setLevel(logging.ERROR)
    _silence_raylet()
    if ray.is_initialized():  # by whoever calls us from Python, or by an earlier experiment of this process
        return
    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False, "logging_level": logging.ERROR}
    if address == "local":
        options |= {"include_dashboard": False, "object_store_memory": 80 * 2**20}
    elif address != "auto":
        _check_reachable(address)
    said: list[str] = []
    try:
        with _showing_token(address), _hearing_libraries(said):
            ray.init(address=address, namespace="rfflow", **options)
    except (AuthenticationError, ConnectionError) as error:
        if isinstance(error, AuthenticationError) or "InvalidAuthToken" in "".join(said):
            raise ConfigError(f"The Ray cluster {address} refuses the token of this process. {_TOKEN}") from error
        raise ConfigError(f"engine.cluster is {address!r}, and no Ray cluster is found there. {HOW}.") from error
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        token = f" {_TOKEN}" if "token" in str(error).lower() else ""
        raise ConfigError(f"The Ray cluster {address} cannot be joined: {reason}{token}") from error


@contextlib.contextmanager
def _showing_token(address: str) -> Iterator[None]:
    """Show a token to a cluster that wants one, and none to one that has none.

    Ray takes the answer from the environment, and looks there when it is imported. Who shows one to a cluster without
    is let in all the same, and loses every actor at once.

    Raises:
        ConfigError: if the environment says otherwise: who insists on tokens must not be talked out of them.
    """
    given = os.environ.get(_MODE)
    wants = None if address == "local" else _wants_token(address)
    if wants is None and (given is not None or address in ("auto", "local")):
        yield
        return
    mode = "disabled" if wants is False else "token"
    if given is not None and given.lower() != mode:
        if wants:
            raise ConfigError(
                f"{_MODE} is {given!r}, and the Ray cluster {address} wants a token. Leave the variable out. {_TOKEN}"
            )
        raise ConfigError(
            f"{_MODE} is {given!r}, and the Ray cluster {address} has no tokens. Start it with {_MODE}=token on every "
            "machine, or leave the variable out here."
        )
    os.environ[_MODE] = mode
    try:
        _look_again()
        yield
    finally:
        if given is None:
            del os.environ[_MODE]


def _wants_token(address: str) -> bool | None:
    """Ask the head of a cluster, without a token; ``None`` where it cannot be asked so, by TLS say."""
    import grpc  # type: ignore[import-untyped]
    from ray._private.services import canonicalize_bootstrap_address

    try:
        found = canonicalize_bootstrap_address(address)
        with grpc.insecure_channel(found) as channel:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")(b"", timeout=_HEAD)
    except grpc.RpcError as error:
        return True if error.code() is grpc.StatusCode.UNAUTHENTICATED else None
    except Exception as error:  # no cluster is there, say; joining it will tell
        log.debug("Whether %s wants a token is not known: %s", address, error)
        return None
    return False


def _look_again() -> None:
    """Let Ray look once more at its environment: an app may have imported it before."""
    import ray._raylet as core

    if (settings := getattr(core, "Config", None)) is not None:
        settings.initialize("")


@contextlib.contextmanager
def _hearing_libraries(said: list[str]) -> Iterator[None]:
    """Take what Ray's core writes past Python to the standard error."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        before = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(before, 2)
            os.close(before)
            file.seek(0)
            said.append(file.read().decode(errors="replace"))
            log.debug("%s", said[-1])


def _check_reachable(address: str) -> None:
    """Say at once what Ray would say after half a minute."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise ConfigError(f"engine.cluster is {address!r}, and nothing answers there: {error}. {HOW}.") from error


def _silence_raylet() -> None:
    """Let what Ray prints of workers that are gone, which we say ourselves, go to our log."""
    from ray._private import worker

    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = lambda data, **_: log.debug("%s", data)


def _ask(node_ids: list[str], marker: Path) -> list[_Answer]:
    import ray
    from ray.exceptions import GetTimeoutError, RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = []
    ask = ray.remote(describe_machine)
    for node_id in node_ids:
        place = NodeAffinitySchedulingStrategy(node_id, soft=False)
        asked.append(
            ask.options(num_cpus=0, max_retries=0, scheduling_strategy=place).remote(str(marker), str(Path.cwd()))
        )
    try:
        return list(ray.get(asked, timeout=_PROBE))
    except GetTimeoutError as error:
        raise ConfigError(
            f"A machine of the Ray cluster has not answered within {_PROBE:.0f} s. Who is in it: ray status"
        ) from error
    except (RayError, ImportError, RuntimeError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        missing = next((line.strip() for line in lines if "No module named" in line), None)
        if missing is not None:
            raise ConfigError(
                f"A machine of the Ray cluster has another environment than this one ({missing}). Start Ray there from "
                "an environment in which rfflow is installed by the same constraints file."
            ) from error
        raise ConfigError(f"A machine of the Ray cluster cannot be asked: {lines[-1] if lines else error}") from error


def describe_machine(marker: str, here: str) -> _Answer:
    """Say what this machine has; runs on it."""
    path, host = Path(marker), socket.gethostname()
    sees = path.exists()
    if sees:
        with contextlib.suppress(OSError):
            _reply(path, host).touch()
    return _Answer(host, versions(), sees, os.path.isdir(here))


@contextlib.contextmanager
def _marker(root: Path) -> Iterator[Path]:
    """Put a file into the experiment's directory that machines can look for, and answer beside."""
    root.mkdir(parents=True, exist_ok=True)
    marker = root.absolute() / f".seen-{uuid.uuid4().hex}"
    marker.touch()
    try:
        yield marker
    finally:
        for path in root.glob(f"{marker.name}*"):
            with contextlib.suppress(OSError):
                path.unlink()


def _reply(marker: Path, host: str) -> Path:
    return marker.with_name(f"{marker.name}.{host}")


def _replied(marker: Path, host: str) -> bool:
    return _reply(marker, host).exists()
