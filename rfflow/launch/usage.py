"""Words on the command line that are no overrides, answered by what was meant before anything is loaded."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from rfflow.files import typed_command

AFTERWARDS = ("ls", "show", "compare", "chat", "generate", "export", "rescore")
"""What looks at experiments that are there."""
COMMANDS = ("ctl", "ui", "replay", "new", *AFTERWARDS)
"""What stands first and is no experiment to be trained."""
OF_CTL = ("stop", "resume", "clone", "delete", "status")
_FLAGS_OF_CTL = ("best", "worst", "by", "direction", "warm-start", "control", "timeout")
_FLAGS = {"help": "--help", "version": "--version", "multirun": "--multirun", "sweep": "--multirun"}
_SCRIPTS = {
    "learning-rate": "lr",
    "model-name-or-path": "model=hub model.name",
    "model": "model=hub model.name",
    "dataset-name": "dataset=hub dataset.name",
    "train-file": "dataset=local dataset.path",
}
"""How flags of other people's training scripts are written here."""
_FILES = (".jsonl", ".json", ".csv", ".parquet", ".txt", ".gz", ".zst")

Groups = Mapping[str, Sequence[str]]
"""The options of every config group."""

_HOW = """\
rfflow trains all the configurations of a Hydra sweep at once, a chunk of the data at a time.

  {rfflow} +recipe=sft --multirun lr=1e-3,1e-4     two learning rates on a small chat model, in two minutes on a CPU
  {rfflow} +recipe=sft trainer.args.max_steps=10   one run of ten steps
  {rfflow} +recipe=sft dataset=local dataset.path=my.jsonl --multirun lr=1e-3,1e-4    rows of your own
  {rfflow} new my_recipe                           write a recipe to begin with
  {rfflow} ctl --help                              stop, resume, clone and delete runs while they train
  {rfflow} ui                                      the same in a browser, beside their curves
  {rfflow} resume=outputs/sft/...                  go on after an interruption
  {rfflow} ls                                      the experiments there are; show DIR for one of them
  {rfflow} chat outputs/sft/...                    talk to the best run's model, or to several side by side
  {rfflow} export outputs/sft/... --to my_model    take the best run's model away; --merge makes it a whole one
  {rfflow} --help                                  all recipes, groups and settings

Recipes: {recipes}"""


def how_to_use(groups: Groups) -> str:
    """Return what somebody sees who types nothing but the program's name."""
    return _HOW.format(rfflow=typed_command(), recipes=", ".join(groups.get("recipe", ())))


def groups_in(*folders: Path) -> Groups:
    """Return the config groups that folders hold, without what Hydra would have to load for that."""
    found: dict[str, list[str]] = {}
    for folder in folders:
        for path in sorted(folder.glob("*/*.yaml")):
            found.setdefault(path.parent.name, []).append(path.stem)
    found.pop("hydra", None)
    return found


def why_no_override(words: Sequence[str], groups: Groups) -> str | None:
    """Return what to say of the first word that Hydra cannot read as an override; ``None`` where it can read all.

    Args:
        words: the command line without flags.
        groups: the config groups there are.
    """
    for place, word in enumerate(words):
        if not word.startswith("~") and "=" not in word:
            said = _torn_apart(words, place - 1) or _torn_apart(words, place) or _bare(words, place, groups)
            return f"{word!r} is no override, which would be key=value. {said}"
        if (error := _grammar_error(word)) is not None:
            said = _torn_apart(words, place) or _to_be_quoted(word) or ""
            return f"{word!r} cannot be read: {error}. {said}".rstrip()
    return None


def why_no_flag(word: str, following: str | None, options: Sequence[str], groups: Groups) -> str:
    """Return what to say of a flag that does not exist.

    Args:
        word: the flag, perhaps with ``=value``.
        following: the word after it.
        options: the flags there are.
        groups: the config groups there are.
    """
    name, equals, value = word.lstrip("-").partition("=")
    said = f"There is no {word.partition('=')[0]}."
    if not equals and following is not None and "=" not in following and not following.startswith("-"):
        value = following
    name = name.replace("_", "-")
    if name in _FLAGS_OF_CTL:
        return f"{said} It belongs to {typed_command()} ctl, which speaks to an experiment that is running."
    if near := difflib.get_close_matches(f"--{name}", [option for option in options if option[:2] == "--"], 1, 0.8):
        return f"{said} Did you mean {near[0]}?"
    key = name.replace("-", "_")
    if key in groups and name not in _SCRIPTS:
        option = value if value in groups[key] else _nearest(value, groups[key]) or groups[key][0]
        key = "+recipe" if key == "recipe" else key
        return f"{said} Overrides have no dashes. Type {key}={option}"
    if len(key) == 1:
        return f"{said} All flags: {typed_command()} --hydra-help"
    key = _SCRIPTS.get(name, key)
    if key not in ("lr", "resume", "seed", "chunks", "evaluate", "name") and "." not in key:
        key = f"trainer.args.{key}"
        said += " An argument of the trainer is set by trainer.args."
    return f"{said} Overrides have no dashes. Type {key}={shlex.quote(value) if value else '...'}"


def _bare(words: Sequence[str], place: int, groups: Groups) -> str:
    word, rfflow = words[place], typed_command()
    rest = " ".join(map(shlex.quote, words[place + 1 :]))
    if word in _FLAGS:
        return f"Type {rfflow} {_FLAGS[word]}"
    if word in COMMANDS:
        return f"It stands first: {rfflow} {word} --help"
    if word == "resume" and place + 1 < len(words) and not words[place + 1].isdigit():
        return f"Type {rfflow} resume={shlex.quote(words[place + 1])}"
    if word == "resume" and place + 1 == len(words):
        return f"Type {rfflow} resume=outputs/... to go on with an experiment, {rfflow} ctl resume RUN while one goes"
    if word in OF_CTL and place == 0:
        return f"Type {rfflow} ctl {word} {rest}".rstrip()
    if (Path(word) / "experiment.json").is_file():
        return f"To go on with that experiment: {rfflow} resume={shlex.quote(word)}"
    if Path(word).suffix.lower() in _FILES:
        return f"Rows of your own: dataset=local dataset.path={shlex.quote(word)}"
    if word in groups:
        meant = next((option for option in words[place + 1 :][:1] if option in groups[word]), groups[word][0])
        plus = "+" if word == "recipe" else ""
        return f"It is a group. Type {plus}{word}={meant}. There are: {', '.join(groups[word])}."
    if said := " or ".join(_choosing(word, groups)):
        return f"Type {said}"
    if place == 0 and (near := _nearest(word, COMMANDS, 0.6)):
        return f"Did you mean {rfflow} {near}?"
    if near := _nearest(word, [option for options in groups.values() for option in options if option != "none"]):
        return f"Did you mean {' or '.join(_choosing(near, groups))}?"
    if place == 0 and (near := _nearest(word, OF_CTL)):
        return f"Did you mean {rfflow} ctl {near}?"
    return f"To train: {rfflow} +recipe=sft --multirun lr=1e-3,1e-4. All there is: {rfflow} --help"


def _choosing(word: str, groups: Groups) -> Iterator[str]:
    """Give what chooses an option of that name; a recipe chooses the rest."""
    if word in groups.get("recipe", ()):
        yield f"+recipe={word}"
        return
    yield from (f"{group}={word}" for group, options in groups.items() if word in options and word != "none")


def _torn_apart(words: Sequence[str], place: int) -> str | None:
    """Say how to write what the shell has cut at a blank: ``lr=1e-3, 1e-4``, ``lr = 1e-3`` or ``r=[q, v]``."""
    if place < 0:
        return None
    word, following = words[place], words[place + 1 : place + 9]
    for count in range(1, len(following) + 1):
        parts = [word, *following[:count]]
        is_torn = word[-1:] in "=,[" or parts[1][:1] in "=,]" or word.count("[") > word.count("]")
        joined = "".join(parts) if "=" in (word[-1:], parts[1][:1]) else " ".join(parts)
        if is_torn and "=" in joined[:-1] and _grammar_error(joined) is None:
            return f"Blanks part words. Type {shlex.quote(joined)}"
    return None


def _to_be_quoted(word: str) -> str | None:
    key, _, value = word.partition("=")
    quoted = f'{key}="{value}"'
    if '"' in value or _grammar_error(quoted) is not None:
        return None
    return f"A value with characters of Hydra's grammar stands in quotes of its own. As text: {shlex.quote(quoted)}"


def _grammar_error(word: str) -> str | None:
    if word.startswith("="):
        return "there is no key"
    try:
        OverridesParser.create().parse_override(word)
    except HydraException as error:
        return str(error).strip().splitlines()[0].partition(" expecting")[0]
    return None


def _nearest(word: str, allowed: Sequence[str], cutoff: float = 0.7) -> str | None:
    return next(iter(difflib.get_close_matches(word, allowed, 1, cutoff)), None)
