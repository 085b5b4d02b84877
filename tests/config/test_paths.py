"""Functions by dotted path, paths and the cache."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from rfflow.config.paths import cache_folder, existing_path, looks_local
from rfflow.config.targets import instantiate_values, resolve_function
from rfflow.errors import ConfigError


def test_a_function_without_arguments_is_the_function_itself() -> None:
    """Hydra's own wrapper would cost half a millisecond a call."""
    assert resolve_function("json.dumps") is json.dumps
    assert resolve_function({"_target_": "json.dumps"}) is json.dumps
    assert resolve_function("pathlib.Path.joinpath") is Path.joinpath


def test_other_keys_become_keyword_arguments() -> None:
    function = resolve_function({"_target_": "json.dumps", "indent": 2, "separators": [",", ":"]})
    assert function({"a": 1}) == json.dumps({"a": 1}, indent=2, separators=(",", ":"))
    assert function.__name__ == "dumps"


def test_a_module_beside_the_user_is_found_and_hides_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    (tmp_path / "beside_the_user.py").write_text("def score(row): return 1")
    (tmp_path / "colorsys.py").write_text("def score(row): return 1")
    assert resolve_function("beside_the_user.score")({}) == 1
    with pytest.raises(ConfigError, match="colorsys has no 'score'"):
        resolve_function("colorsys.score")


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ("json.dmups", "json has no 'dmups'. Did you mean 'dumps'"),
        ("json.decoders.JSONDecoder", "json has no 'decoders'. Did you mean 'decoder'"),
        ("jsn.dumps", "no module 'jsn', neither installed nor in"),
        ("json.decoder.JSONDecoder.decod", "json.decoder.JSONDecoder has no 'decod'. Did you mean 'decode'"),
        ("json", "of type module, not a function"),
        ("not a path", "not a dotted path"),
        ({"indent": 2}, "where is None"),
        ({"_target_": 3}, "where is 3"),
        ("os.system", "blocklisted"),
    ],
)
def test_what_is_no_function_is_refused(node: object, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        resolve_function(node, "where")  # type: ignore[arg-type]
    assert said in str(error.value)


def test_nodes_among_values_are_made() -> None:
    made = instantiate_values({"a": 1, "b": {"_target_": "fractions.Fraction", "numerator": 3}, "c": {"x": 1}}, "model")
    assert made["a"] == 1 and made["b"] == 3 and made["c"] == {"x": 1}
    with pytest.raises(ConfigError, match=r"model\.b: cannot make fractions\.Fraction: TypeError: both arguments"):
        instantiate_values({"b": {"_target_": "fractions.Fraction", "numerator": "x", "denominator": 3}}, "model")


def test_paths_are_told_from_hub_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    for path in ("./model", "/models/x", "~/x", "a/b/c", "x.gguf", "pkg://x/y", "here"):
        assert looks_local(path), path
    for name in ("gpt2", "org/model", "Qwen/Qwen2.5-0.5B"):
        assert not looks_local(name), name


def test_a_path_may_start_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RFFLOW_CACHE")
    (tmp_path / "rows.jsonl").touch()
    assert existing_path("~/rows.jsonl", "dataset.path") == tmp_path / "rows.jsonl"
    assert cache_folder("data") == tmp_path / ".cache/rfflow/data"


@pytest.mark.parametrize("place", ["/proc/no/such/place", "/dev/null", "~nobody_has_this_name/cache", "read-only"])
def test_a_cache_that_cannot_be_written_is_done_without(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A read-only home, or none: what would be kept goes with the process, and that is said once."""
    monkeypatch.setenv("RFFLOW_CACHE", place)
    if place == "read-only":  # which it is to nobody who may run tests as root
        monkeypatch.chdir(tmp_path)
        access = os.access
        monkeypatch.setattr(os, "access", lambda path, mode: str(path)[:9] != place and access(path, mode))
    folders = {cache_folder("data"), cache_folder("data"), cache_folder("models")}
    assert len(folders) == 2 and all(folder.is_dir() and os.access(folder, os.W_OK) for folder in folders)
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith(f"{place} cannot be written to: ") and said.endswith("RFFLOW_CACHE=...")
