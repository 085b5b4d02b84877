"""From a question to the messages that a model is sent, by Jinja templates in a sandbox."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import StrictUndefined, TemplateError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rfflow.config.spec import PromptSpec
from rfflow.errors import ConfigError, nearest
from rfflow.evals.questions import Document, Question, check_references

Messages = list[dict[str, str]]
"""As chat templates and servers take them: each a role and a content."""


class Template:
    """One template of Jinja."""

    def __init__(self, where: str, text: str):
        """Compile it.

        Raises:
            ConfigError: if it cannot be read.
        """
        self._where = where
        try:
            self._wanted = meta.find_undeclared_variables(_ENVIRONMENT.parse(text)) - set(_ENVIRONMENT.globals)
            self._template = _ENVIRONMENT.from_string(text)
        except TemplateError as error:
            raise ConfigError(f"{where} is no template of Jinja: {str(error).rstrip('.')}.") from error

    def check(self, known: set[str]) -> None:
        """Check that it uses nothing that is not there.

        Raises:
            ConfigError: naming what it uses, and what there is.
        """
        for variable in sorted(self._wanted - known):
            raise ConfigError(
                f"{self._where} has {{{{ {variable} }}}}, and there is no {variable!r}.{nearest(variable, known)} "
                f"There {'is' if len(known) == 1 else 'are'}: {', '.join(sorted(known)) or 'nothing'}."
            )

    def render(self, variables: Mapping[str, Any], question: str) -> str:
        """Fill it in.

        Args:
            variables: what it may use.
            question: the id of the one for which it is done.

        Raises:
            ConfigError: if an expression in it fails, or does what the sandbox forbids.
        """
        try:
            return str(self._template.render(variables))
        except Exception as error:  # whatever an expression in it leads to
            said = f"{type(error).__name__}: {str(error).rstrip('.')}"
            raise ConfigError(f"{self._where} cannot be filled in for question {question!r}: {said}.") from error


_ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)


class Prompt:
    """Templates that were looked at."""

    def __init__(self, spec: PromptSpec, questions: Sequence[Question], pool: Sequence[Question] = ()):
        """Compile the templates, and choose the examples.

        Args:
            spec: the templates.
            questions: those to be asked, whose columns the templates may use.
            pool: rows that are not scored, from which the examples are the first; in the order of the experiment's
                seed, so that all runs have the same.

        Raises:
            ConfigError: if a template cannot be read, or uses something that is not there.
        """
        columns = {key for question in questions for key in question.row}
        known = {"question", "passages", *columns}
        self._user = _looked_at("user", spec.user, known)
        self._system = None if spec.system is None else _looked_at("system", spec.system, columns)
        self._answer = _looked_at("answer", spec.answer, {*known, "reference", "references"})
        if spec.fewshot > len(pool):
            raise ConfigError(
                f"prompt.fewshot is {spec.fewshot}, and there are {len(pool)} rows to take examples from: those that "
                "are not scored. Score fewer (dataset.eval_size), or give a file to score (dataset.eval_path)."
            )
        self.examples = list(pool[: spec.fewshot])
        """The questions that come first, with their answers."""
        check_references(self.examples, "prompt.fewshot")

    def __call__(
        self, question: Question, passages: Sequence[Document], examples: Sequence[Sequence[Document]] = ()
    ) -> Messages:
        """Return what a model is sent.

        Args:
            question: what to ask.
            passages: what was found for it.
            examples: what was found for each of the examples.
        """
        messages: Messages = []
        if self._system is not None:
            messages.append({"role": "system", "content": self._system.render(question.row, question.id)})
        for index, example in enumerate(self.examples):
            found = _variables(example, examples[index] if examples else ())
            answers = {"reference": example.references[0], "references": list(example.references)}
            messages.append({"role": "user", "content": self._user.render(found, example.id)})
            messages.append({"role": "assistant", "content": self._answer.render({**found, **answers}, example.id)})
        content = self._user.render(_variables(question, passages), question.id)
        return [*messages, {"role": "user", "content": content}]


def _looked_at(name: str, text: str, known: set[str]) -> Template:
    template = Template(f"prompt.{name}", text)
    template.check(known)
    return template


def check_fit(lengths: Sequence[int], names: Sequence[str], answer: int, context: int) -> None:
    """Check that every prompt, and an answer, fits into a model's context.

    Args:
        lengths: of the prompts, in tokens.
        names: the ids of their questions.
        answer: tokens of the longest answer.
        context: how many tokens the model has room for.

    Raises:
        ConfigError: naming the longest.
    """
    over = sum(length + answer > context for length in lengths)
    if over:
        longest = max(range(len(lengths)), key=lengths.__getitem__)
        raise ConfigError(
            f"{over} of {len(lengths)} prompts are too long for the model: that of question {names[longest]!r} has "
            f"{lengths[longest]} tokens, and with an answer of {answer} that is more than its context of {context}. "
            "Fewer or shorter passages (retriever.k, retriever.chunker.size) or examples (prompt.fewshot) take less."
        )


def hash_of(content: Any) -> str:
    """Return what tells one prompt from another."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _variables(question: Question, passages: Sequence[Document]) -> dict[str, Any]:
    return {**question.row, "question": question.text, "passages": list(passages)}
