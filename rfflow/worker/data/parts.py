"""What a data set consists of: one part or several that are mixed, and what is evaluated on."""

from __future__ import annotations

import glob
from collections.abc import Mapping
from dataclasses import dataclass, replace

from rfflow.config.paths import existing_path
from rfflow.config.spec import DatasetSpec
from rfflow.errors import ConfigError


@dataclass(frozen=True)
class PartSpec:
    """One of the data sets that are mixed, or the only one; or an evaluation set."""

    spec: DatasetSpec
    title: str
    """How messages about its rows begin."""
    where: str = "dataset.path"
    split_key: str = "split"


def name_of(spec: DatasetSpec) -> str:
    """Return what a user calls a data set."""
    if spec.datasets:
        return " and ".join(map(name_of, spec.datasets))
    return " and ".join(spec.path) if isinstance(spec.path, tuple) else str(spec.path or spec.name)


def parts_of(spec: DatasetSpec) -> list[PartSpec]:
    """Return what is mixed, each with what it takes over from the whole."""
    title = "The data set {}".format
    if spec.datasets:
        return [
            PartSpec(
                replace(
                    part,
                    columns=part.columns or spec.columns,
                    sample_by=spec.sample_by if part.sample_by == DatasetSpec.sample_by else part.sample_by,
                    formatting_func=part.formatting_func or spec.formatting_func,
                ),
                title(name_of(part)),
                f"dataset.datasets[{index}].path",
            )
            for index, part in enumerate(spec.datasets)
        ]
    if isinstance(spec.path, tuple) and (spec.probabilities is not None or spec.stopping_strategy is not None):
        return [
            PartSpec(replace(spec, path=path), title(path), f"dataset.path[{index}]")
            for index, path in enumerate(spec.path)
        ]
    return [PartSpec(spec, title(name_of(spec)))]


def evaluation_parts(spec: DatasetSpec) -> dict[str, PartSpec]:
    """Return what is evaluated on, by name; one alone is called nothing."""
    if spec.eval_path is not None:
        named = spec.eval_path if isinstance(spec.eval_path, Mapping) else {"": spec.eval_path}
        split = spec.eval_split if isinstance(spec.eval_split, str) else "train"
        sets = {name: replace(spec, path=path, name=None, datasets=(), split=split) for name, path in named.items()}
        keys = ("dataset.eval_path", "split")
    elif spec.eval_split is None:
        return {}
    elif spec.datasets or isinstance(spec.path, tuple):
        raise ConfigError(
            f"dataset.eval_split is {spec.eval_split!r}, but there are several data sets. Give dataset.eval_path or "
            "dataset.eval_size."
        )
    elif spec.path is not None and not glob.has_magic(spec.path) and existing_path(spec.path, "dataset.path").is_file():
        raise ConfigError(
            f"dataset.eval_split is {spec.eval_split!r}, but {spec.path} is one file and has no splits. "
            "Give dataset.eval_path or dataset.eval_size."
        )
    else:
        splits = spec.eval_split if isinstance(spec.eval_split, Mapping) else {"": spec.eval_split}
        sets = {name: replace(spec, split=split) for name, split in splits.items()}
        keys = ("dataset.path", "eval_split")
    titles = {name: (name_of(part) if spec.eval_path is not None else part.split) for name, part in sets.items()}
    return {
        name: PartSpec(
            part,
            f"The evaluation set {titles[name]}" + (f" ({name})" if name else ""),
            f"{keys[0]}.{name}" if name and spec.eval_path is not None else keys[0],
            keys[1],
        )
        for name, part in sets.items()
    }
