"""How Hydra's configuration files are read: the same file once, and expressions of rules as they are.

Every job of a sweep, and every clone, is composed from the same files, and reading YAML takes a good part of that.

OmegaConf takes every ``${...}`` for a reference of its own, and refuses ``${parent.lr * 0.5}`` when it reads the file:
not resolving the configuration would come too late. A backslash in front makes it text. :func:`install` has the
backslash set where a YAML file is read, in the overrides of rules and nowhere else.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import yaml
from hydra._internal.core_plugins import file_config_source
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from omegaconf import OmegaConf
from omegaconf._utils import get_yaml_loader

_EXPRESSION = re.compile(r"(?<!\\)\$\{(?=[^{}:]*\})")  # with a colon it calls a resolver, which is Hydra's


def install() -> None:
    """Read configuration files this way from now on: those of ``--config-dir`` and ``hydra.searchpath`` as well."""
    Plugins.instance()  # registers Hydra's own sources, which would refuse to come second
    SourcesRegistry.instance().types["file"] = FileConfigSource


class FileConfigSource(file_config_source.FileConfigSource):
    """Hydra's source of files; it has the same name because Hydra tells sources of one scheme apart by their names."""

    _read: ClassVar[dict[tuple[str, Path, int, int], ConfigResult]] = {}
    """What was read, by who asked, the file, when it was changed last and its size."""

    def load_config(self, config_path: str) -> ConfigResult:
        """Read a file, unless it was read and has not changed; the expressions of rules in it stay as they are."""
        path = Path(self.path) / self._normalize_file_name(config_path)
        try:
            status = path.stat()
            key = (self.provider, path, status.st_mtime_ns, status.st_size)
            if key not in self._read:
                self._read[key] = self._load(config_path, path.read_text(encoding="utf-8"))
        except OSError:
            return super().load_config(config_path)  # it says what is wrong
        found = self._read[key]
        # Hydra takes the defaults list out of what it gets.
        return replace(found, config=copy.deepcopy(found.config), header=dict(found.header))

    def _load(self, config_path: str, text: str) -> ConfigResult:
        if "rules" not in text or not _EXPRESSION.search(text):
            return super().load_config(config_path)
        document = yaml.load(text, Loader=get_yaml_loader())
        return ConfigResult(
            config=OmegaConf.create(_escaped(document)),
            path=f"{self.scheme()}://{self.path}",
            provider=self.provider,
            header=self._get_header_dict(text[:512]),
        )


def escaped_words(words: Sequence[str]) -> list[str]:
    """Do the same for overrides on a command line that set rules: ``'policy.rules=[...]'``."""
    return [_EXPRESSION.sub(r"\\${", word) if word.lstrip("+").startswith("policy.rules") else word for word in words]


def _escaped(value: Any) -> Any:
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "do" in value and isinstance(value.get("overrides"), list):  # a rule
        overrides = [_EXPRESSION.sub(r"\\${", o) if isinstance(o, str) else o for o in value["overrides"]]
        return {**value, "overrides": overrides}
    return {key: _escaped(item) for key, item in value.items()}


_here = Path(__file__).resolve().parents[1]


CONF = _here / "conf" if (_here / "conf").is_dir() else _here.parent / "conf"  # in a wheel, in a checkout
