"""The runs of an experiment whose models are to be used, chosen on the command line and read from its files."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rfflow.confidential import HIDDEN
from rfflow.config.run import model_of
from rfflow.config.spec import ModelSpec
from rfflow.control.belonging import is_open_to_others, stranger_among, user
from rfflow.errors import ConfigError
from rfflow.files import shown
from rfflow.results.opened import Opened, chosen_run
from rfflow.runs.finished import FinishedRun, read_json
from rfflow.runs.run import Run


def add_choice(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """Add the flags that choose runs; without any it is the best."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--best", action="store_true", help="the best run that has completed (the default)")
    group.add_argument("--run", type=int, metavar="N", help="the run of that number")
    if several:
        group.add_argument("--runs", type=_numbers, metavar="N,N", help="several, side by side: 0,3 or all")


def _numbers(text: str) -> list[int] | str:
    if text == "all":
        return text
    try:
        return list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of runs. Allowed: numbers such as 0,3, or all") from None


def chosen(opened: Opened, args: argparse.Namespace, base: str | None = None) -> list[FinishedRun]:
    """Return the runs that the command line chooses.

    Args:
        opened: the experiment.
        args: of a parser with :func:`add_choice`.
        base: where the base model is now, where that has moved.

    Raises:
        ConfigError: if one has left no model.
    """
    numbers: list[int | None] = [args.run]
    if (several := getattr(args, "runs", None)) == "all":
        numbers = [run.number for run in opened.experiment.ranked() if run.paths.final.is_dir()] or [None]
    elif several:
        numbers = list(several)
    return [finished(opened, chosen_run(opened, number), base) for number in numbers]


def finished(opened: Opened, run: Run, base: str | None = None) -> FinishedRun:
    """Read what a run has left.

    Raises:
        ConfigError: if its base model cannot be known.
    """
    folder, label = run.paths.final, f"Run {run.number} of {shown(opened.root)}"
    config_file = folder / "adapter_config.json"
    adapter = read_json(config_file) if config_file.exists() else None
    model = _model(opened, run.number, label)
    if model is None and adapter is not None and (name := adapter.get("base_model_name_or_path")):
        model = ModelSpec(str(name), kwargs={"dtype": "auto"})
    if model is not None:
        model = replace(model, name=base) if base else _found_again(opened, model)
    return FinishedRun(run.number, label, folder, model, adapter, read_json(run.paths.base))


def _model(opened: Opened, number: int, label: str) -> ModelSpec | None:
    """Return the base model by the configuration of the run, which says secrets by their variables or not at all."""
    config = opened.config(number)
    section = config.get("model")
    if not isinstance(section, Mapping) or not section.get("name") or "trainer" not in config:
        return None
    _check_trusted(opened.root, section)
    given = {key: value for key, value in section.items() if value != HIDDEN and key != "adapter"}
    try:
        given = dict(OmegaConf.to_container(OmegaConf.create(given), resolve=True))  # type: ignore[arg-type]
    except OmegaConfBaseException as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"{label}: its model is {section['name']!r}, which cannot be read again: {reason}") from error
    return model_of({**config, "model": given})


def _found_again(opened: Opened, model: ModelSpec) -> ModelSpec:
    """Return the model with paths as they are from here: they were relative to where the experiment was started."""
    command = opened.saved.command
    if command is None:
        return model
    cwd = command.cwd

    def here(name: str) -> str:
        there = Path(cwd, name)
        return str(there) if not os.path.isabs(name) and not Path(name).exists() and there.exists() else name

    return replace(model, name=here(model.name), tokenizer=model.tokenizer and here(model.tokenizer))


def _check_trusted(root: Path, section: Mapping[str, Any]) -> None:
    """Check that nobody else says which code is run to load the model.

    Raises:
        ConfigError: if the experiment's file is another's, or others may write to it, and loading runs code.
    """
    code = [target for target in _targets(section) if not target.startswith("transformers.")]
    if section.get("trust_remote_code"):
        code.append("model.trust_remote_code")
    if not code:
        return
    state = root / "experiment.json"
    if (owner := stranger_among(root, (state.name,))) is not None or is_open_to_others(state):
        whose = f"it belongs to {user(owner)}" if owner is not None else "others may write to it"
        raise ConfigError(
            f"Loading a model of {shown(root)} would run {code[0]} as you, and {whose}. Copy the experiment to a "
            "directory of your own once you have looked into it."
        )


def _targets(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        if isinstance(value.get("_target_"), str):
            yield value["_target_"]
        for each in value.values():
            yield from _targets(each)
    elif isinstance(value, list):
        for each in value:
            yield from _targets(each)
