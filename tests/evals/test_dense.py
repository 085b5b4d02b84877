"""Retrieval and reranking by models: what is found, what is kept on disk, and what is answered where it cannot be."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rfflow.config.spec import EvaluationSpec
from rfflow.errors import ConfigError
from rfflow.evals.questions import Document, Question
from rfflow.evals.reranking import Ranked
from tests.support.tiny import write_jsonl

TEXTS = ["one plus two is three", "cats and dogs", "a long way from home", "rain", "seven or eight of them"]
DOCUMENTS = [Document(str(n), text) for n, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def bases() -> Any:
    from rfflow.worker.models.bases import Bases
    from rfflow.worker.models.loading import load_base

    return Bases(load_base, lambda model: model)


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("RFFLOW_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/indexes"


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Returns the texts that are embedded from here on, call by call."""
    from rfflow.worker.evaluation.embedding import Embedder

    calls: list[list[str]] = []
    embed = Embedder.__call__

    def noted(self: Embedder, texts: Sequence[str]) -> np.ndarray:
        calls.append(list(texts))
        return embed(self, texts)

    monkeypatch.setattr(Embedder, "__call__", noted)
    return calls


def dense(bases: Any, model: Path, documents: Sequence[Document] = DOCUMENTS, **kwargs: Any) -> Any:
    from rfflow.worker.evaluation.dense import Dense

    return Dense(documents, bases, {"name": str(model), "dtype": "float32"}, **kwargs)


def hidden(bases: Any, model: Path, text: str) -> np.ndarray:
    """Return the hidden states of one text alone, [tokens, width]."""
    import torch

    from rfflow.worker.evaluation.embedding import load_model

    base = load_model(bases, {"name": str(model), "dtype": "float32"}, "x")
    ids = base.tokenizer()(text, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        return base.model.base_model(input_ids=ids).last_hidden_state[0].numpy()


def test_a_vector_is_that_of_the_text_alone(bases: Any, tiny_model: Path) -> None:
    """Pooled by hand; texts of a batch are padded, and that does not show."""
    from rfflow.worker.evaluation.embedding import Embedder, load_model

    base = load_model(bases, {"name": str(tiny_model), "dtype": "float32"}, "x")
    for pooling, by_hand in (("mean", lambda h: h.mean(0)), ("cls", lambda h: h[0]), ("last", lambda h: h[-1])):
        vectors = Embedder(base, pooling, batch_size=2)(TEXTS)
        wanted = np.stack([by_hand(hidden(bases, tiny_model, text)) for text in TEXTS])
        np.testing.assert_allclose(vectors, wanted, atol=1e-5)


def test_the_nearest_passages_come_first(bases: Any, tiny_model: Path) -> None:
    assert [found[0] for found in dense(bases, tiny_model).retrieve(TEXTS, 2)] == [0, 1, 2, 3, 4]
    one = dense(bases, tiny_model, query_prefix="query: ", document_prefix="passage: ")
    vectors = [hidden(bases, tiny_model, text).mean(0) for text in ("query: rain", *(f"passage: {t}" for t in TEXTS))]
    scaled = np.stack([vector / np.linalg.norm(vector) for vector in vectors])
    assert one.retrieve(["rain"], 5) == [[int(n) for n in np.argsort(-(scaled[1:] @ scaled[0]))]]
    plain = dense(bases, tiny_model, normalize=False).retrieve(["rain"], 5)
    means = np.stack([hidden(bases, tiny_model, text).mean(0) for text in TEXTS])
    assert plain == [[int(n) for n in np.argsort(-(means @ means[3]))]]


def test_passages_are_embedded_once(
    bases: Any, tiny_model: Path, cache: Path, embedded: list[list[str]], tmp_path: Path
) -> None:
    from tests.support.tiny import make_model

    first = dense(bases, tiny_model).retrieve(["rain"], 2)
    assert embedded == [TEXTS, ["rain"]]
    again = dense(bases, tiny_model, query_prefix="", normalize=True)
    assert again.retrieve(["rain", "rain", "cats"], 2)[0] == first[0]
    assert again.retrieve(["cats"], 1) and embedded[2:] == [["rain", "cats"]], "and questions once, too"
    del embedded[:]
    dense(bases, tiny_model, DOCUMENTS[:4])
    dense(bases, tiny_model, pooling="last")
    dense(bases, tiny_model, document_prefix="passage: ")
    dense(bases, make_model(tmp_path / "other", seed=1))
    assert [len(texts) for texts in embedded] == [4, 5, 5, 5], "another corpus, pooling, prefix or model: another index"
    (file, *_) = sorted(cache.glob("*.safetensors"))
    for each in cache.glob("*.safetensors"):
        each.write_bytes(each.read_bytes()[:40])  # torn
    dense(bases, tiny_model)
    assert len(embedded) == 5 and file.parent == cache
    assert not list(cache.glob(".*")), "nothing is left of what was written aside"


def test_who_comes_at_the_same_time_waits_for_the_index(
    bases: Any, tiny_model: Path, embedded: list[list[str]]
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    dense(bases, tiny_model, DOCUMENTS[:1])  # the model is loaded
    with ThreadPoolExecutor(2) as pool:
        made = [pool.submit(dense, bases, tiny_model) for _ in range(2)]
        assert [each.result().retrieve([TEXTS[3]], 1) for each in made] == [[[3]]] * 2
    assert sum(texts == TEXTS for texts in embedded) == 1


def test_an_index_of_another_corpus_is_refused(bases: Any, tiny_model: Path, tmp_path: Path) -> None:
    folder = str(tmp_path / "mine")
    found = dense(bases, tiny_model, index=folder).retrieve(["rain"], 1)
    assert (tmp_path / "mine/index.safetensors").exists()
    assert dense(bases, tiny_model, index=folder).retrieve(["rain"], 1) == found == [[3]]
    with pytest.raises(ConfigError, match="is an index of another corpus: of 5 passages, and these are 4"):
        dense(bases, tiny_model, DOCUMENTS[1:], index=folder)
    with pytest.raises(ConfigError, match="was made otherwise: pooling is 'mean' there and 'cls' here"):
        dense(bases, tiny_model, pooling="cls", index=folder)
    (tmp_path / "mine/index.safetensors").write_text("torn")
    with pytest.raises(ConfigError, match=r"index\.safetensors cannot be read"):
        dense(bases, tiny_model, index=folder)


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"pooling": "max"}, r"retriever\.pooling is 'max'\. Allowed: mean, cls, last"),
        ({"batch_size": 0}, r"retriever\.batch_size is 0\. Allowed"),
        ({"max_length": 5000}, r"retriever\.max_length is 5000, and the model reads 512 tokens at most"),
    ],
)
def test_settings_that_cannot_be_are_refused(kwargs: dict[str, Any], said: str, bases: Any, tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        dense(bases, tiny_model, **kwargs)


def test_a_model_that_is_not_there_is_refused_by_its_own_name(bases: Any, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"retriever\.model\.name is '.*nowhere': no such file or folder"):
        dense(bases, tmp_path / "nowhere")
    from rfflow.worker.evaluation.dense import Dense

    with pytest.raises(ConfigError, match=r"retriever\.model\.name is None"):
        Dense(DOCUMENTS, bases, {})


def test_texts_that_are_cut_are_counted(bases: Any, tiny_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        dense(bases, tiny_model, max_length=10)
    assert "4 of 5 texts are longer than 10 tokens" in caplog.text


# --- reranking --------------------------------------------------------------------------------------------------------


class Shortest:
    """A user's own."""

    calls = 0

    def rerank(self, question: str, passages: Sequence[Document]) -> list[float]:
        Shortest.calls += 1
        return [-len(passage.text) for passage in passages]


class Refusing:
    def __init__(self, returned: Any):
        self.returned = returned

    def rerank(self, question: str, passages: Sequence[Document]) -> Any:
        return self.returned


def test_a_reranker_puts_passages_in_order() -> None:
    ranked = Ranked(Shortest(), "Shortest")
    before = Shortest.calls
    assert [each.id for each in ranked("?", DOCUMENTS)] == ["3", "1", "2", "0", "4"]
    assert ranked("?", DOCUMENTS) and ranked("?", []) == [] and Shortest.calls == before + 1, "asked once"
    for returned, said in (
        ([1.0], r"reranker returned \[1\.0\] for 5 passages\. Allowed: a number for each"),
        ([float("nan")] * 5, "reranker returned"),
        (None, "reranker: TypeError"),
    ):
        with pytest.raises(ConfigError, match=said):
            Ranked(Refusing(returned), "Refusing")("?", DOCUMENTS)
    with pytest.raises(ConfigError, match=r"reranker: dict has no method rerank\(question, passages\)"):
        Ranked({}, "dict")  # type: ignore[arg-type]


def test_a_cross_encoder_scores_each_pair_as_it_would_alone(bases: Any, tiny_model: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoTokenizer, LlamaForSequenceClassification

    from rfflow.worker.evaluation.cross_encoder import CrossEncoder

    def saved(labels: int) -> dict[str, Any]:
        torch.manual_seed(0)
        model = LlamaForSequenceClassification.from_pretrained(tiny_model, num_labels=labels)
        model.save_pretrained(tmp_path / str(labels))
        AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / str(labels))
        return {"name": str(tmp_path / str(labels)), "dtype": "float32"}

    scores = CrossEncoder(bases, saved(1), batch_size=2).rerank("Where?", DOCUMENTS)
    model = LlamaForSequenceClassification.from_pretrained(tmp_path / "1").eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    with torch.inference_mode():
        alone = [float(model(**tokenizer("Where?", text, return_tensors="pt")).logits) for text in TEXTS]
    assert scores == pytest.approx(alone, abs=1e-5) and len(set(scores)) == 5
    assert len(CrossEncoder(bases, saved(1), max_length=9).rerank("Where?", DOCUMENTS)) == 5
    with pytest.raises(ConfigError, match="whose head has 3 labels"):
        CrossEncoder(bases, saved(3))


def test_more_are_found_for_the_reranker_than_are_kept(tmp_path: Path) -> None:
    from rfflow.config.spec import DatasetSpec
    from rfflow.worker.data.rows import load_data
    from rfflow.worker.evaluation.finding import find

    class Shared:
        """As much of it as is asked for."""

        bases = None

        def data(self, spec: DatasetSpec, trainer: Any) -> Any:
            return load_data(spec, 0, trainer)

        def made_once(self, key: str, make: Any) -> Any:
            return make()

    write_jsonl(tmp_path / "documents.jsonl", [{"id": each.id, "text": each.text} for each in DOCUMENTS])
    spec = EvaluationSpec(
        generator=None,
        corpus=DatasetSpec(path=str(tmp_path / "documents.jsonl")),
        retriever={"_target_": f"{__name__}.All"},
        k=2,
        reranker={"_target_": f"{__name__}.Shortest"},
        reranked=4,
    )
    shared: Any = Shared()
    assert [each.id for each in find(spec, shared, [Question("q", "?")])[0]] == ["3", "1"]
    from dataclasses import replace

    assert [each.id for each in find(replace(spec, reranker=None), shared, [Question("q", "?")])[0]] == ["0", "1"]
    with pytest.raises(ConfigError, match=r"retriever\.k is 6, and the corpus has 5 passages"):
        find(replace(spec, k=6), shared, [Question("q", "?")])


class All:
    """Finds whatever there is, in its order."""

    def __init__(self, documents: Sequence[Document]):
        self.count = len(documents)

    def retrieve(self, questions: Sequence[str], k: int) -> list[list[int]]:
        return [list(range(self.count))[:k] for _ in questions]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"retriever": None}, "reranker is set, and there is no retriever"),
        ({"reranker": {"_target_": "x.Y", "candidates": 2}}, r"reranker\.candidates is 2, and retriever\.k of them"),
        ({"reranker": {"candidates": 9, "batch_size": 3}}, "reranker is .* which has no _target_"),
    ],
)
def test_rerankers_that_cannot_be_are_refused(changed: dict[str, Any], said: str) -> None:
    from rfflow.config.evaluation import read_evaluation

    config = {
        "generator": "my_code.answer",
        "prompt": {"user": "{{ question }}"},
        "retriever": {"_target_": "my_code.Retriever", "k": 3},
        "reranker": {"_target_": "my_code.Reranker"},
        "metrics": {"f1": "rfflow.evals.metrics.f1"},
        "objective": {"metric": "eval_f1"},
    }
    assert (read_evaluation(config).reranker, read_evaluation(config).reranked) == (
        {"_target_": "my_code.Reranker"},
        20,
    )
    with pytest.raises(ConfigError, match=said):
        read_evaluation({**config, **changed})
