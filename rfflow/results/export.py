"""``rfflow export``: take a run's model away: the adapter, or merged into its base, for others to load."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rfflow.config.paths import looks_local
from rfflow.errors import ConfigError, RfflowError
from rfflow.files import shown, typed_command
from rfflow.results.card import card, shown_name
from rfflow.results.finished import add_choice, finished
from rfflow.results.listing import readable_size
from rfflow.results.opened import Opened, chosen_run, open_experiment
from rfflow.runs.finished import FinishedRun, read_json
from rfflow.runs.run import Run

DTYPES = ("float32", "bfloat16", "float16")
_NOT_TAKEN = ("training_args.bin", "README.md", "optimizer.pt", "scheduler.pt")
"""A pickle, which nobody should have to trust; what it says is in the card. PEFT's card knows less than ours."""


def export(argv: Sequence[str]) -> int:
    """Export a run's model; return the exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.to is None and args.push is None:
        parser.error("say where: --to PATH, --push REPO_ID or both")
    try:
        _check_flags(args)
        opened = open_experiment(args.dir)
        run = chosen_run(opened, args.run)
        with _interruptible():
            _export(args, opened, run, finished(opened, run, args.base_model))
    except RfflowError as error:
        print(f"rfflow export: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"rfflow export: nothing was written: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("rfflow export: interrupted; nothing was left half written.", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog=f"{typed_command()} export",
        description="Take a run's model away, as transformers and PEFT load it, with tokenizer and model card.",
    )
    parser.add_argument("dir", help="an experiment's directory")
    add_choice(parser)
    parser.add_argument("--to", metavar="PATH", help="the folder to make; it may not be there, or be empty")
    parser.add_argument("--merge", action="store_true", help="merge the adapter into its base: a whole model")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights of a whole model (default: as they are)")
    parser.add_argument("--gguf", action="store_true", help="say how the whole model becomes a .gguf file")
    parser.add_argument("--base-model", metavar="NAME", help="where the base model is now, if it has moved")
    parser.add_argument("--push", metavar="REPO_ID", help="send it to the Hugging Face hub, as user/name")
    parser.add_argument("--private", action="store_true", default=None, help="make the repository a private one")
    parser.add_argument("--force", action="store_true", help="push into a repository that exists")
    return parser


def _check_flags(args: argparse.Namespace) -> None:
    args.merge = args.merge or args.gguf
    for flag in ("private", "force"):
        if getattr(args, flag) and args.push is None:
            raise ConfigError(f"--{flag} belongs to --push REPO_ID.")
    if args.gguf and args.to is None:
        raise ConfigError("--gguf reads a folder on this machine: say where with --to PATH.")
    if args.to is None:
        return
    target = Path(args.to).expanduser()
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise ConfigError(f"--to {args.to} is {'a link' if target.is_symlink() else 'a file'}. Give a new folder.")
    if target.is_dir() and any(target.iterdir()):
        raise ConfigError(f"--to {args.to} is not empty, and nothing in it is written over. Give a new folder.")


def _export(args: argparse.Namespace, opened: Opened, run: Run, found: FinishedRun) -> None:
    is_whole = args.merge or found.adapter is None
    if args.dtype is not None and not is_whole:
        raise ConfigError("--dtype is of a whole model's weights: say --merge too. An adapter is left as it is.")
    repository = None
    if args.push is not None:
        from rfflow.results.hub import Repository

        repository = Repository(args.push, private=args.private, force=args.force)
    target = None if args.to is None else Path(args.to).expanduser()
    name = repository.name if repository is not None else str(args.to)
    with _written_aside(target) as folder:
        notes = _write_whole(found, folder, args.dtype) if is_whole else _copy_adapter(found, folder, repository)
        if args.merge and found.adapter is None:
            notes = [*notes, "Every weight was trained: there was no adapter to merge."]
        base = shown_name(found.model.name) if found.model is not None else ""
        if not is_whole and repository is None and found.model is not None:
            base = _base_for_others(found)
        text = card(opened, run, found, merged=is_whole, name=name, base=base, notes=notes)
        (folder / "README.md").write_text(text, encoding="utf-8")
        if repository is not None and target is None:
            print(f"{found.label} is at {repository.push(folder, _message(opened, run))}")
    for note in notes:
        print(note)
    if target is not None:
        kind = "a whole model" if is_whole else f"an adapter of {shown_name(base)}"
        size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
        print(f"{found.label} is in {shown(target)}: {kind}, {readable_size(size)}")
        if repository is not None:
            print(f"and at {repository.push(target, _message(opened, run))}")
        if args.gguf:
            print(how_to_gguf(target))


def _message(opened: Opened, run: Run) -> str:
    return f"Run {run.number} of {opened.experiment.spec.name}"


def _write_whole(found: FinishedRun, folder: Path, dtype: str | None) -> list[str]:
    from rfflow.worker.finished.merging import write_whole_model

    return write_whole_model(found, folder, dtype)


def _copy_adapter(found: FinishedRun, folder: Path, repository: Any) -> list[str]:
    """Copy an adapter and its tokenizer, with the generation config of its base where that can be read."""
    for path in sorted(found.folder.iterdir()):
        if path.is_file() and path.name not in _NOT_TAKEN:
            shutil.copyfile(path, folder / path.name)
    notes = []
    if found.model is not None and found.adapter is not None:
        config = {**found.adapter, "base_model_name_or_path": _base_for_others(found)}
        if looks_local(found.model.name) and repository is not None:
            config["base_model_name_or_path"] = shown_name(found.model.name)
            notes.append(
                f"Its base, {shown_name(found.model.name)}, was a file or folder of the machine that trained it: "
                "others have to give theirs to PeftModel.from_pretrained."
            )
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    _write_generation_config(found, folder)
    return notes


def _base_for_others(found: FinishedRun) -> str:
    """Return the base's name as from_pretrained takes it, from whichever directory."""
    assert found.model is not None and found.adapter is not None
    name = found.model.name
    if Path(name).is_dir():
        return str(Path(name).absolute())
    # A .gguf file was converted into the cache, which PEFT has noted.
    return str(found.adapter.get("base_model_name_or_path") or name) if looks_local(name) else name


def _write_generation_config(found: FinishedRun, folder: Path) -> None:
    assert found.model is not None or found.adapter is not None
    base = _base_for_others(found) if found.model is not None and found.adapter is not None else ""
    file = Path(base) / "generation_config.json"
    if not looks_local(base):
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(base, "generation_config.json") if base else None
        file = Path(cached) if isinstance(cached, str) else Path()
    if (found_config := read_json(file)) and not (folder / file.name).exists():
        ends = _token_id(found.folder)
        known = found_config.get("eos_token_id")
        known = [] if known is None else known if isinstance(known, list) else [known]
        if ends is not None and ends not in known:
            found_config["eos_token_id"] = [ends, *known]
        (folder / "generation_config.json").write_text(json.dumps(found_config, indent=2) + "\n", encoding="utf-8")


def _token_id(folder: Path) -> int | None:
    """Return the number of the token that ends a turn, as the tokenizer's files have it."""
    end = read_json(folder / "tokenizer_config.json").get("eos_token")
    end = end.get("content") if isinstance(end, dict) else end
    tokens = read_json(folder / "tokenizer.json").get("added_tokens", [])
    return next((token["id"] for token in tokens if token.get("content") == end), None)


def how_to_gguf(folder: Path) -> str:
    """Say how a folder becomes a .gguf file, which is llama.cpp's to do."""
    script = "convert_hf_to_gguf.py"
    places = [Path(os.environ[name]) for name in ("LLAMA_CPP", "LLAMA_CPP_DIR") if os.environ.get(name)]
    found = shutil.which(script) or next((str(place / script) for place in places if (place / script).exists()), None)
    outfile = shlex.quote(f"{shown(folder).rstrip('/')}.gguf")
    command = f"python {shlex.quote(found or f'llama.cpp/{script}')} {shlex.quote(shown(folder))} --outfile {outfile}"
    if found is not None:
        return f"As a .gguf file: {command} --outtype q8_0"
    return (
        f"As a .gguf file, by {script} of llama.cpp, which is neither on the path nor in $LLAMA_CPP:\n"
        "  git clone https://github.com/ggml-org/llama.cpp && pip install -r "
        "llama.cpp/requirements/requirements-convert_hf_to_gguf.txt\n"
        f"  {command} --outtype q8_0"
    )


@contextlib.contextmanager
def _written_aside(target: Path | None) -> Iterator[Path]:
    """Give a folder to write into, which becomes the target once all is written; without one it is thrown away."""
    if target is None:
        with tempfile.TemporaryDirectory(prefix="rfflow-export-") as folder:
            yield Path(folder)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.absolute().name}.writing-{os.getpid()}")
    aside.mkdir()
    try:
        yield aside
        os.replace(aside, target)  # an empty folder makes way, one that was filled meanwhile does not
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let a SIGTERM clean up as Ctrl-C does."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
