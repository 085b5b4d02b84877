"""What only one run of an experiment can have: runs overlap in time, and what two of them wrote would be neither's.

Said before training where it can be: of the jobs of a sweep when they have been composed, of a clone and of what an
app has built when its trainer is made.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rfflow.errors import ConfigError

ONE_A_PROCESS: Mapping[str, str] = {
    "azure_ml": "has one run a process",
    "clearml": "has one task a process",
    "codecarbon": "measures the whole machine, whoever trains",
    "comet_ml": "has one experiment a process",
    "dagshub": "has one run a process",
    "dvclive": "has one directory for all",
    "flyte": "has one checkpoint, its task's",
    "kubeflow": "has one state, its job's",
    "swanlab": "has one experiment a process",
}
"""Why two runs cannot use these at once, by their names in ``trainer.args.report_to``."""


_LIBRARIES_CHANGE: Mapping[str, str] = {
    "use_liger_kernel": (
        "Liger's kernels take the place of functions of transformers', which every model of that kind calls."
    ),
    "full_determinism": "cuBLAS reads what it asks for once, when the first run multiplies.",
}
"""What changes a library for the whole process, and how."""


@dataclass(frozen=True)
class Claim:
    """Something that a run needs for itself."""

    what: str
    value: str
    clash: str
    """What two runs with the same would do, and what to do instead: "both write to ..."."""
    lasts: bool = False
    """Whether it stays the run's when it has ended: what it has written is there."""


@dataclass(frozen=True)
class Held:
    """What a run has for itself, and what it has agreed to."""

    claims: tuple[Claim, ...] = ()
    agreed: Mapping[str, bool] = field(default_factory=dict)
    """What has to be the same for all runs, by the name of the argument."""


class Claims:
    """Who has claimed what, of all the runs of an experiment."""

    def __init__(self) -> None:
        self._owners: dict[tuple[str, str], tuple[int, Claim]] = {}
        self._agreed: dict[str, tuple[int, bool]] = {}

    def take(self, number: int, claims: Iterable[Claim]) -> None:
        """Let a run have these.

        Raises:
            ConfigError: if another run has one of them; those before it are taken.
        """
        for claim in claims:
            owner, _ = self._owners.setdefault((claim.what, claim.value), (number, claim))
            if owner != number:
                first, second = sorted((owner, number))
                raise ConfigError(f"Runs {first} and {second} {claim.clash}")

    def agree(self, number: int, argument: Callable[[str], Any], device: str) -> None:
        """Note what has to be the same for all runs of a process, on that kind of device.

        Raises:
            ConfigError: if it is not.
        """
        names = [name for name in _LIBRARIES_CHANGE if name != "full_determinism" or device != "cpu"]
        self._agree(number, {name: bool(argument(name)) for name in names})

    def hold(self, number: int, held: Held) -> None:
        """Let a run have what it has where it stands.

        Raises:
            ConfigError: if another run, which may stand elsewhere, has something of it.
        """
        self.take(number, held.claims)
        self._agree(number, held.agreed)

    def held_by(self, number: int) -> Held:
        """Return what a run has."""
        claims = tuple(claim for owner, claim in self._owners.values() if owner == number)
        return Held(claims, {name: value for name, (_, value) in self._agreed.items()})

    def _agree(self, number: int, values: Mapping[str, bool]) -> None:
        for name, value in values.items():
            first, seen = self._agreed.setdefault(name, (number, value))
            if seen != value:
                raise ConfigError(
                    f"trainer.args.{name} is {seen} for run {first} and {value} for run {number}, and has to be the "
                    f"same for all runs of an experiment: {_LIBRARIES_CHANGE[name]}"
                )

    def release(self, number: int, *, has_trained: bool) -> None:
        """Take from a run that has ended what another may have now: all of it, if it has not done anything yet."""
        self._owners = {
            key: (owner, claim)
            for key, (owner, claim) in self._owners.items()
            if owner != number or (has_trained and claim.lasts)
        }


def claims_of(argument: Callable[[str], Any], cwd: Path) -> Iterator[Claim]:
    """Return what the arguments of a trainer claim.

    Args:
        argument: returns one of ``trainer.args`` by its name, None where it is not given.
        cwd: where the run stands.
    """
    place = argument("output_dir")
    if place is not None and _is_written_to(argument):
        path = _resolved(place, cwd)
        yield Claim(
            "output_dir",
            path,
            f"both write to trainer.args.output_dir {path}, and each would delete and take up the other's checkpoints. "
            "Leave it out, for one in the run's own directory (a clone says '~trainer.args.output_dir'), or give each "
            f"its own; in a sweep: 'trainer.args.output_dir={place}/${{hydra:job.num}}'.",
            lasts=True,
        )
    if argument("push_to_hub"):
        name = argument("hub_model_id") or Path(_resolved(place or "checkpoints", cwd)).name  # as the trainer names it
        yield Claim(
            "hub_model_id",
            name,
            f"both push to the hub repository {name!r}, one over the other. Give each its own; in a sweep: "
            f"'trainer.args.hub_model_id={name}-${{hydra:job.num}}'.",
            lasts=True,
        )
    yield from _servers(argument)
    trackers = argument("report_to") or ()
    for name in [trackers] if isinstance(trackers, str) else trackers:
        yield from tracker(name)
    if "trackio" in trackers and (name := argument("run_name")) is not None:
        yield Claim(
            "trackio",
            f"{argument('project')} {name}",
            f"both report to trackio under trainer.args.run_name {name!r}, which would be one curve there. Give each "
            f"its own; in a sweep: 'trainer.args.run_name={name}-${{hydra:job.num}}'.",
            lasts=True,
        )


def _is_written_to(argument: Callable[[str], Any]) -> bool:
    """Whether a trainer writes to its ``output_dir``; many scripts give one that never sees a file."""
    strategy = argument("save_strategy")
    is_never = getattr(strategy, "value", strategy) in ("no", False)
    return not is_never or bool(argument("push_to_hub") or argument("log_completions"))


def tracker(name: str) -> Iterator[Claim]:
    """Return what a tracker by its name in ``report_to`` claims."""
    if name in ONE_A_PROCESS:
        yield Claim(
            name,
            "",
            f"both report to {name}, which {ONE_A_PROCESS[name]}: what they report would be mixed. Say "
            "'loggers=[default,wandb]' (or mlflow, trackio): each run has one of its own there. TensorBoard has it "
            "anyway (tb/ in the experiment's directory).",
        )


def client(name: str, value: str) -> Claim:
    """Return the claim of a run that reports to what is active in a tracker's library."""
    return Claim(
        f"{name} run",
        value,
        f"both report to one and the same run of {name} ({value}), where it would be mixed. Let each trainer begin its "
        "own: start none before training, and name none in the environment.",
    )


def check_alone(argument: Callable[[str], Any]) -> None:
    """Check that a run does not ask for the whole process.

    Raises:
        ConfigError: naming the argument.
    """
    for name in ("deepspeed", "fsdp"):
        if value := argument(name):
            raise ConfigError(
                f"trainer.args.{name} is {value!r}. It spreads one model over processes that are there for nothing "
                "else, and rfflow trains all runs in one, on one device. Allowed: null. What saves memory on one "
                "device: an adapter (peft=lora), a quantised base (model=qlora), trainer.args.activation_checkpointing."
            )
    if argument("enable_jit_checkpoint"):
        raise ConfigError(
            "trainer.args.enable_jit_checkpoint is true: at a SIGTERM the run would end early, as if it had finished. "
            "Leave it out: rfflow saves every run at a SIGTERM by itself (checkpoint.grace), and resume= goes on."
        )


def _servers(argument: Callable[[str], Any]) -> Iterator[Claim]:
    if not argument("use_vllm") or argument("vllm_mode") != "server":
        return
    place = argument("vllm_server_host") or "0.0.0.0", argument("vllm_server_port") or 8000  # TRL's own defaults
    server = argument("vllm_server_base_url") or "http://{}:{}".format(*place)
    for what, value in (("server", server), ("vllm_group_port", str(argument("vllm_group_port") or 51216))):
        yield Claim(
            f"vLLM {what}",
            value,
            f"both generate with the vLLM {what} {value}, and a server has the weights of one run. Give each its own "
            "(trainer.args.vllm_server_port and vllm_group_port), or let them generate where they train: "
            "trainer.args.vllm_mode=colocate.",
        )


def _resolved(path: Any, cwd: Path) -> str:
    return os.path.realpath(cwd / os.path.expanduser(str(path)))
