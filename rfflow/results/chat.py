"""``rfflow chat``: talk to a run's model, or to several side by side, on a terminal or through a pipe."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from rfflow.errors import ConfigError, RfflowError
from rfflow.files import typed_command
from rfflow.results.finished import add_choice, chosen
from rfflow.results.opened import open_experiment
from rfflow.results.sampling import add_sampling, read_settings

HELP = """\
/system TEXT   begin again with a system prompt; alone: begin again without
/reset         forget what was said
/set KEY=VALUE an argument of generation from now on: /set temperature=0.7 max_new_tokens=64
/quit          end (Ctrl-D, too); Ctrl-C stops an answer
"""


def chat(argv: Sequence[str]) -> int:
    """Talk until the input ends; return the exit status."""
    parser = argparse.ArgumentParser(
        prog=f"{typed_command()} chat",
        description="Talk to the model of a run, or to several side by side; /help says what else can be typed there.",
        allow_abbrev=False,
    )
    parser.add_argument("dir", help="an experiment's directory")
    add_choice(parser, several=True)
    add_sampling(parser)
    parser.add_argument("--base", action="store_true", help="what the runs began with answers, too")
    args = parser.parse_intermixed_args(argv)
    try:
        settings = read_settings(args.settings)
        runs = chosen(open_experiment(args.dir), args, args.base_model)
        from rfflow.worker.finished.side_by_side import check_settings, load_voices

        check_settings(settings)
        voices = load_voices(runs, with_base=args.base, accelerator=args.accelerator)
        talk = _Talk(voices, settings, system=args.system, raw=args.raw, seed=args.seed)
        talk.run()
    except RfflowError as error:
        print(f"rfflow chat: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # while it loads
        return 130
    return 0


class _Talk:
    """A conversation with each model, in which the user says the same to all."""

    def __init__(
        self, voices: Sequence[Any], settings: dict[str, Any], *, system: str | None, raw: bool, seed: int | None
    ):
        without = [voice.name for voice in voices if not voice.has_template]
        self._is_raw = raw or bool(without)
        if self._is_raw and system is not None:
            why = f"the tokenizer of {without[0]} has no chat template" if without else "--raw gives text as it is"
            raise ConfigError(f"--system is a turn of a conversation, and {why}.")
        self._voices, self._settings, self._seed = voices, settings, seed
        self._system = system
        self._console = Console(highlight=False, soft_wrap=True)
        self._is_terminal = sys.stdin.isatty()
        self.histories: list[list[dict[str, str]]] = []
        self._reset()

    def run(self) -> None:
        """Read lines, and answer them."""
        if self._is_terminal:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401 - lets input() edit and remember lines
            names = ", ".join(voice.name for voice in self._voices)
            about = "Text is continued as it is, each line for itself" if self._is_raw else "Say something"
            self._console.print(f"{names}. {about}; /help for more.", style="dim")
        for line in self._lines():
            if line.startswith("/") and not self._command(line):
                return
            if line and not line.startswith("/"):
                self._answer(line)

    def _lines(self) -> Iterator[str]:
        while True:
            try:
                line = input("you> " if self._is_terminal else "")
            except EOFError:
                return
            except KeyboardInterrupt:
                if not self._is_terminal:
                    return
                self._console.print("\n/quit or Ctrl-D ends.", style="dim")
                continue
            yield line.strip()

    def _command(self, line: str) -> bool:
        """Do what a line with a slash says; return whether to go on."""
        word, _, rest = line.partition(" ")
        if word in ("/quit", "/exit"):
            return False
        try:
            if word == "/reset":
                self._reset()
                self._say("Forgotten.")
            elif word == "/system":
                if self._is_raw:
                    raise ConfigError("/system is a turn of a conversation, and text is given as it is here.")
                self._system = rest.strip() or None
                self._reset()
                self._say("Begun again with that." if self._system else "Begun again without a system prompt.")
            elif word == "/set":
                self._set(rest)
            elif word == "/help":
                self._say(HELP.rstrip())
            else:
                self._say(f"There is no {word}. There are: /system, /reset, /set, /help, /quit.")
        except ConfigError as error:
            self._say(str(error))
        return True

    def _set(self, rest: str) -> None:
        from rfflow.worker.finished.side_by_side import check_settings

        more = read_settings(rest.split())
        check_settings(more)
        self._settings = {key: value for key, value in {**self._settings, **more}.items() if value is not None}
        self._say(" ".join(f"{key}={value}" for key, value in self._settings.items()) or "As by default.")

    def _reset(self) -> None:
        start = [] if self._system is None else [{"role": "system", "content": self._system}]
        self.histories = [list(start) for _ in self._voices]

    def _answer(self, line: str) -> None:
        from rfflow.worker.finished.streaming import streamed

        for voice, history in zip(self._voices, self.histories, strict=True):
            if len(self._voices) > 1 or self._is_terminal:
                self._console.print(Text(f"{voice.name}> ", style="bold"), end="")
            turn = {"role": "user", "content": line}
            try:
                answer, is_whole = streamed(
                    voice, line if self._is_raw else [*history, turn], self._settings, self._seed, self._write
                )
            except ConfigError as error:
                self._say(f"{error} /reset forgets what was said." if len(history) > 1 else str(error))
                continue
            self._write("\n" if is_whole else " …\n")
            history += [turn, {"role": "assistant", "content": answer}]

    def _write(self, text: str) -> None:
        self._console.file.write(text)
        self._console.file.flush()

    def _say(self, text: str) -> None:
        self._console.print(Text(text, style="dim"))
