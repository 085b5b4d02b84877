"""The command: ``python -m rfflow +recipe=sft --multirun lr=1e-3,1e-4``, or ``rfflow ...`` where it is installed.

``rfflow ctl ...`` asks something of an experiment that is running; ``rfflow replay ...`` says what a policy would have
done in one that is over; ``rfflow new NAME`` writes a recipe to begin with; ``rfflow ui`` starts TensorBoard.
``rfflow ls`` and the commands beside it (:mod:`rfflow.results`) look at what experiments have left.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import gc
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
import hydra._internal.hydra
import hydra._internal.utils
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobReturn, JobStatus, run_job
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError

from rfflow.checkpointing.disk import too_long
from rfflow.config import files
from rfflow.config.files import CONF
from rfflow.config.typos import explained, swept
from rfflow.errors import ConfigError, RfflowError
from rfflow.launch import resume, usage
from rfflow.launch.arguments import completion_line, flags_first, groups, make_parser

_SHOWING = ("--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc")
"""Those that train nothing."""
_report_as_hydra = hydra._internal.utils.run_and_report


def main() -> None:
    """Run the command line."""
    try:
        _main()
    except OSError as error:
        if (said := too_long(error)) is None:
            raise
        print(said, file=sys.stderr)
        sys.exit(1)
    else:
        _leave()


def _leave() -> None:
    """Let the process end without a search for garbage in all that libraries hold, which takes it one to two seconds.

    What the experiment has left is let go of as ever, and files of callbacks that nobody has closed are written.
    """
    if "torch" not in sys.modules:
        return
    for one in gc.get_objects():
        if issubclass(type(one), io.TextIOWrapper) and not one.closed:
            with contextlib.suppress(OSError, ValueError):  # of a pipe that nobody reads any more
                one.flush()
    gc.collect()
    gc.freeze()


def _main() -> None:
    if "" not in sys.path and os.getcwd() not in sys.path:
        # `python -m` puts it there, the console script does not. Last, so that it hides no installed module.
        sys.path.append(os.getcwd())
    if sys.argv[1:2] == ["ctl"]:
        from rfflow.control import ctl

        sys.exit(ctl.main(sys.argv[2:]))
    if sys.argv[1:2] == ["replay"]:
        from rfflow.policies import replay

        sys.exit(replay.main(sys.argv[2:], CONF))
    if sys.argv[1:2] == ["new"]:
        from rfflow.launch import new

        sys.exit(new.main(sys.argv[2:]))
    if sys.argv[1:2] == ["ui"]:
        from rfflow.launch import ui

        sys.exit(ui.main(sys.argv[2:]))
    if sys.argv[1:2] and sys.argv[1] in usage.AFTERWARDS:
        from rfflow.results import commands

        sys.exit(commands.main(sys.argv[1], sys.argv[2:]))
    _settle()
    if any(argument.startswith("resume=") for argument in sys.argv[1:]):
        _resume()
    parser = make_parser()
    arguments = sys.argv[1:] = files.escaped_words(flags_first(sys.argv[1:], parser))
    if line := os.environ.get("COMP_LINE"):
        from rfflow.launch.completing import completions

        words, may_be_overrides = completions(line)
        if words:
            print("\n".join(words))
        if not may_be_overrides:
            return
        os.environ["COMP_LINE"] = completion_line(line, parser)
    else:
        _check_words(parser, arguments)
    files.install()
    hydra._internal.hydra.run_job = _run_job  # type: ignore[assignment]  # takes what it hands on
    hydra._internal.utils.run_and_report = _run_and_report  # type: ignore[assignment]
    try:
        run()
    except KeyboardInterrupt:  # while it reads configurations and loads libraries; the engine hears for itself
        print("Interrupted before anything was trained.", file=sys.stderr)
        sys.exit(130)


def _check_words(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
    """End with a word on how to use the command, where Hydra would train its defaults or could read nothing."""
    if all(word in ("--run", "-r", "--multirun", "-m") for word in arguments):
        print(usage.how_to_use(usage.groups_in(CONF)))
        sys.exit(2)
    given = parser.parse_args(list(arguments))
    if given.config_dir and not Path(given.config_dir).is_dir():
        parser.error(f"--config-dir {given.config_dir}: there is no such folder.")
    if said := usage.why_no_override(given.overrides, groups(given)):
        parser.error(said)


def _run_and_report(function: Callable[[], Any]) -> Any:
    """Do what Hydra does, but say in a sentence of ours, and in no more, what is ours to say."""

    def answered() -> Any:
        try:
            return function()
        except InterpolationKeyError as error:  # of --cfg job --resolve; elsewhere it is a sentence by then
            if os.environ.get("HYDRA_FULL_ERROR") == "1":
                raise
            reason = str(error).partition("\n")[0]
            asking = [word for word in sys.argv[1:] if "${" in word and word.partition("${")[2].strip("}") in reason]
            print(": ".join([*asking[:1], reason]), file=sys.stderr)
            sys.exit(1)
        except (HydraException, ValueError) as error:
            said = error if isinstance(error, RfflowError) else _explained(error)
            if said is None or os.environ.get("HYDRA_FULL_ERROR") == "1":
                raise
            print(said, file=sys.stderr)
            sys.exit(1)
        except OSError as error:
            if (too := too_long(error)) is None or os.environ.get("HYDRA_FULL_ERROR") == "1":
                raise
            print(too, file=sys.stderr)
            sys.exit(1)

    return _report_as_hydra(answered)


def _explained(error: Exception) -> Exception | None:
    """Return what to say instead of what Hydra could not compose; ``None`` for what wants a trace."""
    is_group = isinstance(error, ValueError) and str(error).startswith("Config group override must be")
    if not (is_group or isinstance(error, ConfigCompositionException | MissingConfigException)):
        return None
    given = get_args_parser().parse_args()
    loader = GlobalHydra.instance().config_loader()
    name = given.config_name or "config"
    if str(error).startswith(("Ambiguous value", "Sweep parameters")):
        return swept(loader, name, given.overrides) or error
    return explained(loader, name, given.overrides) or (None if is_group else error)


def _settle() -> None:
    """Say before anything is loaded or written that this is not the only process, unless nothing is to be trained."""
    from rfflow.launch.process import outlive_viewers, settle

    outlive_viewers()
    if "COMP_LINE" in os.environ or any(argument in _SHOWING for argument in sys.argv[1:]):
        return
    try:
        settle()
    except RfflowError as error:
        sys.exit(str(error))


def _resume() -> None:

    try:
        arguments = resume.command(sys.argv[1:])
    except RfflowError as error:
        sys.exit(str(error))
    sys.argv[1:] = arguments


def _run_job(**arguments: Any) -> JobReturn:
    """Say in a sentence that the run's directory cannot be made, for which Hydra shows its trace."""
    folder = Path(str(OmegaConf.select(arguments["config"], arguments["job_dir_key"])))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        if too_long(error):
            raise
        raise ConfigError(f"{folder} cannot be written to: {error}. Another directory: hydra.run.dir=...") from error
    result = run_job(**arguments)
    if result.status is JobStatus.FAILED and isinstance(result._return_value, RfflowError):
        raise result._return_value  # Hydra would repeat all the overrides first
    return result


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def run(cfg: DictConfig) -> Any:
    """Train one configuration, or hand it to the launcher of the sweep."""
    from rfflow.launch.train import train

    return train(cfg)


if __name__ == "__main__":
    main()
