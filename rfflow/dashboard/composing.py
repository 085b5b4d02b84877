"""What a clone's overrides would make, composed here with Hydra alone: no torch, and nothing is imported or called.

The experiment itself has the last word: it composes anew when it takes the op. What is said here is said while one
types.
"""

from __future__ import annotations

import contextlib
import copy
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rfflow.confidential import HIDDEN, redacted
from rfflow.config.overrides import on_top
from rfflow.control.admission import Admission
from rfflow.control.belonging import stranger_among, user
from rfflow.control.ops import parse
from rfflow.control.overrides import CODE_KEYS, EXPERIMENT_KEYS, expand
from rfflow.dashboard.changing import Cached
from rfflow.dashboard.known_arguments import check_arguments, known_arguments
from rfflow.dashboard.reader import Experiment
from rfflow.dashboard.warm import why_not_warm
from rfflow.errors import OpError, RfflowError

SHOWN = 8
"""How many clones of all are composed while one types."""
MATCHES = 60
_NOT_FOR_CLONES = re.compile(rf"[+~]*(hydra|{'|'.join(EXPERIMENT_KEYS)})\b|.*\b({'|'.join(CODE_KEYS)})\b")
"""What an op may not set is not offered."""
_lock = threading.Lock()
"""Hydra's parser and its singletons are not made for threads."""


class Composer:
    """Composes as an experiment does: from the same sources, the parent's overrides and those on top of them."""

    def __init__(self, experiment: Experiment):
        self._experiment = experiment
        self._hydra = Cached(self._left_by_hydra(), _read_hydra)
        self._loader: Any = None
        self._from: Any = None
        self._parents: dict[int, Any] = {}
        self._latest: dict[str, float] = {}
        """When each page asked for its last check."""

    # --- what clones would be -----------------------------------------------------------------------------------------

    def check(
        self, parents: Sequence[int], overrides: Sequence[str], *, warm_start: bool, page: str = ""
    ) -> dict[str, Any]:
        """Say what the clones would be.

        Args:
            parents: of which runs.
            overrides: on top of theirs.
            warm_start: whether they would start from their weights.
            page: who asks; of a page's checks, only the latest is answered in full.

        Returns:
            ``{"ok": True, "count": clones in all, "clones": [{"parent", "overrides", "changes": [[key, before, after],
            ...]}, ...]}`` with the first of them; ``{"ok": False, "error": ...}`` with what is wrong; or
            ``{"superseded": True}``.
        """
        asked = self._latest[page] = time.monotonic()
        with _lock:
            clones = []
            try:
                parse({"op": "clone", "run": list(parents), "overrides": list(overrides), "warm_start": warm_start})
                every = [(parent, own) for parent in parents for own in expand(overrides, self._ready())]
                for parent, own in every[:SHOWN]:
                    if self._latest[page] != asked:
                        return {"superseded": True}
                    clones.append(self._clone(parent, own, warm_start=warm_start))
            except Exception as error:  # a resolver, which may be a user's, may raise anything
                return {"ok": False, "error": _said(error)}
        return {"ok": True, "count": len(every), "clones": clones}

    def _clone(self, number: int, own: Sequence[str], *, warm_start: bool) -> dict[str, Any]:
        parent = self._overrides_of(number)
        before, config = self._shown(self._hydra_of_parent(number)), self._compose(on_top(parent, own))
        after = self._shown(config)
        check_arguments(after, self._experiment.paths.arguments, before)
        self._admission(number).check(config, number, parent, own)
        if warm_start and (reason := why_not_warm(self._experiment, number, before, after)):
            raise OpError(f"{' '.join(own)}: {reason}" if own else reason)
        one, other = dict(_flat(before)), dict(_flat(after))
        keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
        return {
            "parent": number,
            "overrides": [redacted(text) for text in own],
            "changes": [[key, one.get(key), other.get(key)] for key in sorted(keys)],
        }

    def _admission(self, number: int) -> Admission:
        admission = Admission(self._hydra_of_parent(number), self._ready(), lambda _, all_of: self._compose(all_of))
        admission.started_with(self._shown(self._hydra_of_parent(number)))
        saved = self._experiment.saved()
        for record in () if saved is None else saved.runs:
            admission.started_with(self._experiment.config(record.number))
        return admission

    # --- what one may type --------------------------------------------------------------------------------------------

    def complete(self, number: int, word: str) -> dict[str, Any]:
        """Return what a word may become, ``{"matches": [{"text", "help"}, ...], "more": how many are left out}``."""
        from hydra.plugins.completion_plugin import DefaultCompletionPlugin
        from omegaconf import OmegaConf

        plus = word[: len(word) - len(word.lstrip("+~"))]
        with _lock:
            config = self._shown(self._hydra_of_parent(number))
            # Not its complete_files: it would list this machine's directories.
            completion: Any = DefaultCompletionPlugin(self._ready())
            groups, is_exact = completion._query_config_groups(word, config_name=self._name, words=[])
            shown = OmegaConf.create(_escaped(dict(config)))  # ${oc.env:...} stays what it is, and nothing is looked up
            keys = [] if is_exact or plus else completion._get_matches(shown, word)
        found = {text: "" for text in (*groups, *keys) if not _NOT_FOR_CLONES.match(text) and HIDDEN not in text}
        known = known_arguments(config, self._experiment.paths.arguments)
        for key, each in known.items():
            key = f"{plus}{key}="
            if key.startswith(word) and "." in word:
                found[key] = " · ".join(filter(None, (each.get("type"), each.get("help"))))[:300]
            elif word.startswith(key) and each.get("choices"):
                found |= {text: "" for choice in each["choices"] if (text := f"{key}{choice}").startswith(word)}
        matches = [{"text": text, "help": found[text]} for text in sorted(found) if text != word]
        return {"matches": matches[:MATCHES], "more": max(0, len(matches) - MATCHES)}

    # --- Hydra --------------------------------------------------------------------------------------------------------

    def _left_by_hydra(self) -> Path:
        root = self._experiment.root
        first = (root / "multirun.yaml", root / ".hydra" / "hydra.yaml")
        last = self._experiment.paths.run(0).root / ".hydra" / "hydra.yaml"
        return next((path for path in first if path.is_file()), last)

    def _ready(self) -> Any:
        hydra = self._hydra.get()
        if hydra is None:
            raise OpError(f"{self._hydra.path} is not there, so overrides cannot be checked before they are asked for.")
        if self._loader is None or self._from is not hydra:
            root = self._experiment.root
            owner = stranger_among(root, ("experiment.json", "multirun.yaml", ".hydra", ".hydra/hydra.yaml"))
            if owner is not None:
                raise OpError(f"The experiment belongs to {user(owner)}, so nothing of it is composed here.")
            self._loader, self._from, self._parents = _loader(hydra["runtime"]["config_sources"]), hydra, {}
        return self._loader

    @property
    def _name(self) -> str:
        return str(self._hydra.get()["job"]["config_name"])

    def _overrides_of(self, number: int) -> list[str]:
        saved = self._experiment.saved()
        if (record := saved and saved.run(number)) and record.job is not None:
            return list(record.job)
        path = self._experiment.run(number).root / ".hydra" / "overrides.yaml"
        try:
            return [str(text) for text in yaml.safe_load(path.read_text(encoding="utf-8"))]
        except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
            raise OpError(f"Run {number} came from no Hydra configuration, so it cannot be cloned.") from error

    def _compose(self, overrides: Sequence[str]) -> Any:
        from hydra.errors import HydraException
        from hydra.types import RunMode
        from omegaconf import open_dict

        from rfflow.config.typos import explained

        loader, given = self._ready(), [str(text) for text in self._hydra.get()["overrides"]["hydra"]]
        try:
            config = loader.load_configuration(self._name, [*given, *overrides], RunMode.MULTIRUN)
        except HydraException as error:
            raise explained(loader, self._name, overrides) or error from None
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = 0
            config.hydra.sweep.dir, config.hydra.sweep.subdir = str(self._experiment.root), "clone"
            config.hydra.runtime.cwd = self._hydra.get()["runtime"]["cwd"]
        return config

    def _hydra_of_parent(self, number: int) -> Any:
        self._ready()
        if number not in self._parents:  # what a run was composed from does not change any more
            self._parents[number] = self._compose(self._overrides_of(number))
        return self._parents[number]

    @staticmethod
    def _shown(config: Any) -> Mapping[str, Any]:
        """Return the resolved configuration that a job's function would get, read and checked, as it may be shown."""
        from omegaconf import OmegaConf

        from rfflow.confidential import shown_config
        from rfflow.config.run import read_run

        with _as_job(config) as task:
            if all(section in task for section in ("trainer", "dataset", "model")):
                return read_run(task).config
            values: Any = OmegaConf.to_container(task, resolve=True)  # of an app that has a configuration of its own
            return shown_config(task, values).config


def _loader(sources: Sequence[Mapping[str, str]]) -> Any:
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.config_search_path_impl import ConfigSearchPathImpl

    from rfflow.config import files

    files.install()
    search = ConfigSearchPathImpl()
    for source in sources:
        search.append(provider=source["provider"], path=f"{source['schema']}://{source['path']}")
    return ConfigLoaderImpl(search)


def _read_hydra(text: str) -> Any:
    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))["hydra"]


@contextlib.contextmanager
def _as_job(config: Any) -> Iterator[Any]:
    """Yield what a job's function would get, as long as ``HydraConfig`` is the job's."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import open_dict

    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(copy.deepcopy(config))  # which makes it read-only
    try:
        task = copy.deepcopy(config)
        with open_dict(task):
            del task["hydra"]
        yield task
    finally:
        HydraConfig.instance().cfg = before


def _flat(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node


def _escaped(node: Any) -> Any:
    """Return plain values in which OmegaConf finds no reference."""
    if isinstance(node, Mapping):
        return {key: _escaped(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_escaped(value) for value in node]
    return node.replace("${", "\\${") if isinstance(node, str) else node


def _said(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"There is no run {error.args[0]}."
    text, cause = str(error), error.__cause__
    if cause is not None and not isinstance(error, RfflowError) and str(cause) not in text:
        text = f"{text} {cause}"
    return redacted(text.partition("\nSee https")[0].strip() or type(error).__name__)
