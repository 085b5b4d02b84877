"""Evaluation by generation: answer rows of the evaluation set at a chunk's end, and score the answers."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from transformers import GenerationConfig, PreTrainedTokenizerBase, Trainer

from rfflow.config.spec import GenerateSpec
from rfflow.config.targets import resolve_function
from rfflow.errors import ConfigError, RunFailed, nearest
from rfflow.runs.chunks import Answer

WHERE = "evaluation.generate"
_REFERENCES = ("completion", "chosen", "answer")


class Generation:
    """What a run has to answer, and how the answers are scored."""

    def __init__(self, spec: GenerateSpec, rows: Dataset | None, tokenizer: PreTrainedTokenizerBase):
        """Read the rows, and try the scores on what should be answered.

        Raises:
            ConfigError: if there is nothing to answer, or a score cannot be had.
        """
        if rows is None:
            raise ConfigError(f"{WHERE} wants rows to answer. Give dataset.eval_path, eval_split or eval_size.")
        check_generation_arguments(spec.kwargs, WHERE)
        self._spec = spec
        self._columns: dict[str, Any] = rows[: spec.samples]
        self.prompts, self.references = _split(self._columns)
        if isinstance(self.prompts[0], list) and not tokenizer.chat_template:
            raise ConfigError(
                f"{WHERE}: the rows are conversations, and the tokenizer of the model has no chat template. "
                "Give a model with one, or model.tokenizer."
            )
        self._scores = [_load(node, f"{WHERE}.scores[{index}]") for index, node in enumerate(spec.scores)]
        try:
            tried = self._score(self.references or [""] * len(self.prompts))
        except RunFailed as error:
            raise ConfigError(f"{WHERE}.scores: {error} (Tried before training, on perfect answers.)") from error
        self.names = frozenset(f"eval_{name}" for name in tried)
        """The metrics that the scores make."""

    def __call__(self, trainer: Trainer) -> tuple[dict[str, float], tuple[Answer, ...]]:
        """Answer with the trainer's model as it is; return the scores, and some of the answers.

        Whatever the answers draw at random is the same for every run and every chunk.
        """
        torch.manual_seed(0)
        with torch.no_grad(), _evaluating(trainer.model), trainer.accelerator.autocast():
            answers = self._answer(trainer.model, trainer.processing_class)
        scores = {f"eval_{name}": value for name, value in self._score(answers).items()}
        shown = zip(self.prompts, answers, self.references or [""] * len(answers), strict=True)
        return scores, tuple(Answer(_text(p), a, r) for p, a, r in list(shown)[: self._spec.shown])

    def _answer(self, model: Any, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        config = GenerationConfig(
            max_new_tokens=self._spec.max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=model.generation_config.eos_token_id or tokenizer.eos_token_id,
            **{"do_sample": False, **self._spec.kwargs},
        )
        answers: list[str] = []
        for start in range(0, len(self.prompts), self._spec.batch_size):
            batch = [_tokenize(tokenizer, prompt) for prompt in self.prompts[start : start + self._spec.batch_size]]
            width = max(map(len, batch))
            # By hand: padding by the tokenizer would change its settings.
            ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(row)) + row for row in batch])
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in batch])
            device = model.get_input_embeddings().weight.device
            generated = model.generate(
                input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=config
            )
            answers += tokenizer.batch_decode(generated[:, width:], skip_special_tokens=True)
        return answers

    def _score(self, answers: Sequence[str]) -> dict[str, float]:
        found: dict[str, float] = {}
        given = {key: values for key, values in self._columns.items() if key not in ("predictions", "references")}
        for score in self._scores:
            name = score.__name__
            try:
                value = score(predictions=answers, references=self.references, **given)
            except Exception as error:
                raise RunFailed(
                    f"The score {name} raised {type(error).__name__}: {error}. It is called with predictions, "
                    f"references and the columns {', '.join(given)}."
                ) from error
            values = value if isinstance(value, Mapping) else {name: value}
            for key, number in values.items():
                try:
                    found[key] = float(number)
                except (TypeError, ValueError) as error:
                    said = f"The score {name} returned {number!r}. Allowed: a number, or a dict of them."
                    raise RunFailed(said) from error
        return found


class Generations:
    """The same for several evaluation sets: each has its scores by its name, and the plain name is their mean."""

    def __init__(self, spec: GenerateSpec, sets: Mapping[str, Dataset], tokenizer: PreTrainedTokenizerBase):
        """Read the rows of all sets; see :class:`Generation`."""
        self._sets = {name: Generation(spec, rows, tokenizer) for name, rows in sets.items()}
        own = {name for each in self._sets.values() for name in each.names}
        self.names = frozenset(own | {_of_set(key, name) for name, each in self._sets.items() for key in each.names})
        """The metrics that the scores make."""

    def __call__(self, trainer: Trainer) -> tuple[dict[str, float], tuple[Answer, ...]]:
        """Answer each set; see :class:`Generation`."""
        scores: dict[str, float] = {}
        answers: tuple[Answer, ...] = ()
        found: dict[str, list[float]] = {}
        for name, generation in self._sets.items():
            own, shown = generation(trainer)
            answers += shown
            for key, value in own.items():
                scores[_of_set(key, name)] = value
                found.setdefault(key, []).append(value)
        return scores | {key: sum(values) / len(values) for key, values in found.items()}, answers


def _of_set(metric: str, name: str) -> str:
    return f"eval_{name}_{metric.removeprefix('eval_')}"


def check_generation_arguments(kwargs: Mapping[str, Any], where: str) -> None:
    """GenerationConfig itself takes any name for a setting of the model's own, and says nothing."""
    known = [name for name in vars(GenerationConfig()) if not name.startswith("_")]
    for key, value in kwargs.items():
        if key not in known:
            raise ConfigError(
                f"{where}.{key} is {value!r}, but GenerationConfig has no {key!r}.{nearest(key, known)} "
                "All of them: python -c 'from transformers import GenerationConfig as C; help(C)'"
            )


def _split(columns: Mapping[str, Sequence[Any]]) -> tuple[list[Any], list[str]]:
    """Return what to ask, and what should be answered where that is known."""
    if "prompt" in columns:
        prompts = list(columns["prompt"])
        column = next((name for name in _REFERENCES if name in columns), None)
        return prompts, [_text(value) for value in columns[column]] if column else []
    if "messages" in columns and all(rows and rows[-1]["role"] == "assistant" for rows in columns["messages"]):
        return [rows[:-1] for rows in columns["messages"]], [_text(rows[-1:]) for rows in columns["messages"]]
    raise ConfigError(
        f"{WHERE} reads prompt (and {', '.join(_REFERENCES)} to compare with), or messages that end with the "
        f"assistant's. Columns there: {', '.join(columns)}."
    )


def _text(value: Any) -> str:
    """Return text as it is, of messages what the last one says, and no text of nothing."""
    if value is None:
        return ""
    return str(value[-1]["content"]) if isinstance(value, list) and value else str(value)


def _tokenize(tokenizer: PreTrainedTokenizerBase, prompt: Any) -> list[int]:
    if isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"])
    text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _load(node: Any, where: str) -> Callable[..., Any]:
    function = resolve_function(node, where)
    if inspect.isclass(function):
        raise ConfigError(f"{where} is {node!r}, a class. Give a function of predictions and references.")
    return function


@contextlib.contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
