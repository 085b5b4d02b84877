"""From a specification to what an evaluation is made of: questions in their order, prompts, what answers them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rfflow.config.evaluation import READS_QUESTIONS
from rfflow.config.spec import EvalSpec, EvaluationSpec, Node
from rfflow.config.targets import import_object, resolve_function
from rfflow.errors import ConfigError
from rfflow.evals.judging import parted
from rfflow.evals.prompts import Prompt, hash_of
from rfflow.evals.questions import Question, permutation, read_questions
from rfflow.evals.retrieval import make, wants
from rfflow.worker.data.rows import Data
from rfflow.worker.evaluation.finding import find
from rfflow.worker.evaluation.judges import Judging, make_judging
from rfflow.worker.evaluation.replies import Asked, Batches, Replies, calls
from rfflow.worker.shared import Shared


@dataclass(frozen=True)
class Pieces:
    """All that a run needs to answer its questions."""

    questions: Sequence[Question]
    """In the order of the experiment."""
    asked: Sequence[Asked]
    """What is given to whoever answers."""
    hashes: Sequence[str]
    """Of that."""
    found: Sequence[tuple[str, ...]]
    """The documents found for each, best first, each once."""
    replies: Replies
    judges: Sequence[Judging] = ()
    """What is asked about the answers."""
    generator: Any = None
    """What answers prompts; ``None`` of a pipeline."""


def wants_base(spec: EvaluationSpec) -> bool:
    """Whether the generator takes the model of the section ``model``."""
    return spec.generator is not None and wants(spec.generator, "base", "generator")


def make_pieces(spec: EvalSpec, shared: Shared) -> Pieces:
    """Read, retrieve, fill in the prompts and make the generator: what is wrong is said before anything is asked.

    Raises:
        ConfigError: for whatever cannot be.
    """
    evaluation = spec.evaluation
    questions, pool = _questions(spec, shared)
    if evaluation.pipeline is not None:
        function = resolve_function(evaluation.pipeline, "pipeline")
        asked: list[Asked] = [_item(question) for question in questions]
        replies: Replies = calls(function, evaluation.concurrency)
        hashes, judges = _hashes(asked, evaluation.pipeline), _judges(spec, shared, questions)
        return Pieces(questions, asked, hashes, [()] * len(questions), replies, judges)
    assert evaluation.prompt is not None and evaluation.generator is not None
    prompt = Prompt(evaluation.prompt, questions, pool)
    found, of_examples = (find(evaluation, shared, each) for each in (questions, prompt.examples))
    asked = [prompt(question, each, of_examples) for question, each in zip(questions, found, strict=True)]
    generator = _generator(evaluation.generator, spec, shared)
    if callable(getattr(generator, "check", None)):
        generator.check(asked, [question.id for question in questions])
    if callable(getattr(generator, "generate", None)):
        replies = Batches(generator)
    else:
        replies = calls(generator, evaluation.concurrency)
    documents = [tuple(dict.fromkeys(document.id for document in each)) for each in found]
    beside = getattr(generator, "asked_by_arguments", ())
    node = {key: value for key, value in evaluation.generator.items() if key not in beside}
    what = [node, spec.model.key if wants_base(evaluation) else None]
    judges = _judges(spec, shared, questions)
    return Pieces(questions, asked, _hashes(asked, what), documents, replies, judges, generator)


def _judges(spec: EvalSpec, shared: Shared, questions: Sequence[Question]) -> list[Judging]:
    def generator(section: Node, where: str) -> Any:
        return _generator(section, spec, shared, where)

    nodes = parted(spec.evaluation.metrics)[1]
    return [make_judging(name, node, questions, generator) for name, node in nodes.items()]


def _questions(spec: EvalSpec, shared: Shared) -> tuple[list[Question], list[Question]]:
    """Return the questions in their order, and the rows that are not scored."""

    def read() -> tuple[list[Question], list[Question]]:
        return in_order(shared.data(spec.dataset, READS_QUESTIONS), shared.seed)

    return shared.made_once(f"questions {spec.dataset.key}", read)


def in_order(data: Data, seed: int) -> tuple[list[Question], list[Question]]:
    """Return the questions of a data set in their order, and the rows that are not scored; no question is in both."""
    if isinstance(data.eval, dict):
        raise ConfigError(f"dataset.eval_path names {len(data.eval)} sets, and an evaluation has one.")
    scored = read_questions(data.train if data.eval is None else data.eval)
    rest = [] if data.eval is None else read_questions(data.train)
    taken = {question.text for question in scored}
    others = [rest[place] for place in permutation(len(rest), seed)]
    order = permutation(len(scored), seed)
    return [scored[place] for place in order], [each for each in others if each.text not in taken]


def _generator(node: Node, spec: EvalSpec, shared: Shared, where: str = "generator") -> Any:
    """Return what answers prompts: an object made of a class, or a function with what stands beside it."""
    if not isinstance(import_object(str(node["_target_"]), where), type):
        return resolve_function(node, where)
    given: dict[str, Any] = {"base": shared.bases.get(spec.model)} if wants(node, "base", where) else {}
    if wants(node, "quotas", where):
        given["quotas"] = shared.quotas
    if wants(node, "engines", where):
        given["engines"] = shared.made_once("engines", dict[str, Any])
    made = make(node, where, **given)
    if not callable(getattr(made, "generate", None)) and not callable(made):
        raise ConfigError(f"{where}: {node['_target_']} has no method generate(prompts), and cannot be called.")
    return made


def _item(question: Question) -> dict[str, Any]:
    """Return what a pipeline is given: everything of the row but the answer."""
    return {**question.row, "id": question.id, "question": question.text}


def _hashes(asked: Sequence[Asked], what: Any) -> list[str]:
    return [hash_of([each, what]) for each in asked]
