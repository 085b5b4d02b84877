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
        self._environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)
        columns = {key for question in questions for key in question.row}
        known = {"question", "passages", *columns}
        self._user = self._compile("user", spec.user, known)
        self._system = None if spec.system is None else self._compile("system", spec.system, columns)
        self._answer = self._compile("answer", spec.answer, {*known, "reference", "references"})
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
            messages.append({"role": "system", "content": self._render("system", self._system, question.row)})
        for index, example in enumerate(self.examples):
            found = _variables(example, examples[index] if examples else ())
            answers = {"reference": example.references[0], "references": list(example.references)}
            messages.append({"role": "user", "content": self._render("user", self._user, found)})
            messages.append(
                {"role": "assistant", "content": self._render("answer", self._answer, {**found, **answers})}
            )
        content = self._render("user", self._user, _variables(question, passages))
        return [*messages, {"role": "user", "content": content}]

    def _compile(self, name: str, text: str, known: set[str]) -> Any:
        try:
            tree = self._environment.parse(text)
            wanted = meta.find_undeclared_variables(tree)
            template = self._environment.from_string(text)
        except TemplateError as error:
            raise ConfigError(f"prompt.{name} is no template of Jinja: {error}.") from error
        for variable in sorted(wanted - known - set(self._environment.globals)):
            raise ConfigError(
                f"prompt.{name} has {{{{ {variable} }}}}, and there is no {variable!r}.{nearest(variable, known)} "
                f"There {'is' if len(known) == 1 else 'are'}: {', '.join(sorted(known)) or 'nothing'}."
            )
        return template

    def _render(self, name: str, template: Any, variables: Mapping[str, Any]) -> str:
        try:
            return str(template.render(variables))
        except Exception as error:  # whatever an expression in it leads to
            raise ConfigError(f"prompt.{name} cannot be filled in: {type(error).__name__}: {error}.") from error


def hash_of(content: Any) -> str:
    """Return what tells one prompt from another."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _variables(question: Question, passages: Sequence[Document]) -> dict[str, Any]:
    return {**question.row, "question": question.text, "passages": list(passages)}
