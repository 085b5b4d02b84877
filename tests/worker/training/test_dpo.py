"""Preference training: the reference is shared, asked once, and every run equals its own TRL script alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from rfflow.config.spec import GenerateSpec, ModelSpec, RunSpec
from rfflow.errors import ConfigError
from rfflow.runs.run import RunState
from rfflow.worker.models.bases import Bases
from rfflow.worker.models.loading import load_base
from tests.launch.test_cli import Shell
from tests.support.plain import train_alone
from tests.support.tiny import make_model, make_rows, run_spec, write_jsonl
from tests.worker.training.test_exactness import train_together

Spec = Callable[..., RunSpec]


def preferences(rows: int) -> list[dict[str, str]]:
    """Return sums with a right and a wrong answer."""
    return [
        {"prompt": row["prompt"], "chosen": row["completion"], "rejected": f"I think it is {index}."}
        for index, row in enumerate(make_rows(rows))
    ]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of preferences."""
    return write_jsonl(tmp_path_factory.mktemp("pairs") / "train.jsonl", preferences(32))


@pytest.fixture(scope="module")
def evaluation_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second file to evaluate on."""
    return write_jsonl(tmp_path_factory.mktemp("pairs") / "eval.jsonl", preferences(6))


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of other weights to compare with."""
    return make_model(tmp_path_factory.mktemp("other") / "model", seed=7)


@pytest.fixture
def spec(tiny_model: Path, pairs: Path, evaluation_pairs: Path) -> Spec:
    """Make a DPO run; ``ref_model`` names the reference."""

    def make(ref_model: Path | None = None, **kwargs: object) -> RunSpec:
        kwargs |= {"dataset": {"eval_path": str(evaluation_pairs)}}
        run = run_spec(tiny_model, pairs, trainer="trl.DPOTrainer", args_target="trl.DPOConfig", **kwargs)  # type: ignore[arg-type]
        if ref_model is None:
            return run
        return replace(run, trainer=replace(run.trainer, ref_model=ModelSpec(name=str(ref_model))))

    return make


PRECOMPUTED = {"precompute_ref_log_probs": True}
VARIANTS: dict[str, dict[str, object]] = {
    "as it is": {},
    "beta": {"args": {"beta": 0.5}},
    "another loss and rank": {"args": {"loss_type": ["ipo"]}, "peft": {"r": 8}},
    "a mix of losses": {"args": {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]}},
    "dropout": {"args": {"disable_dropout": False}},
    "precomputed": {"args": PRECOMPUTED},
    "precomputed, found": {"args": {**PRECOMPUTED, "learning_rate": 1e-2}, "peft": {"r": 2}},
    "precomputed, found, with dropout": {"args": {**PRECOMPUTED, "disable_dropout": False, "beta": 0.3}},
    "precomputed, the same again": {"args": {**PRECOMPUTED, "disable_dropout": False, "beta": 0.2}},
    "precomputed, shorter": {"args": {**PRECOMPUTED, "max_length": 24}},
    "every weight": {"peft": None, "args": {"max_steps": 5}},
    "every weight, precomputed": {"peft": None, "args": {"max_steps": 5, **PRECOMPUTED}},
}


def test_interleaved_runs_equal_the_same_scripts_alone(spec: Spec, other_model: Path, tmp_path: Path) -> None:
    """Losses, references and adapters side by side on one base, evaluated at boundaries: equal to the last bit."""
    specs = {name: spec(chunks=3, **variant) for name, variant in VARIANTS.items()}
    specs["another reference"] = spec(chunks=3, ref_model=other_model)
    answered = GenerateSpec(2, max_new_tokens=2, scores=("rfflow.scores.exact_match",), kwargs={"do_sample": True})
    specs["answering at boundaries"] = replace(spec(chunks=3), generate=answered)
    specs["another reference, precomputed"] = spec(chunks=3, ref_model=other_model, args=PRECOMPUTED)
    runs, together = train_together(list(specs.values()), tmp_path / "experiment")
    assert [(run.state, run.error) for run in runs] == [(RunState.COMPLETED, None)] * len(specs)
    assert "eval_rewards/margins" in runs[0].metrics
    for number, (name, variant) in enumerate(specs.items()):
        alone = train_alone(variant, tmp_path / "alone" / str(number))
        assert not together[str(number)].differences(alone), name


def test_the_reference_is_asked_once_for_all_runs(
    spec: Spec, tmp_path: Path, tiny_model: Path, evaluation_pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the runs' adapters, seeds and losses are; and again when what it is asked about is other."""
    from trl import DPOTrainer

    asked: list[object] = []
    compute = DPOTrainer.compute_ref_log_probs

    def count(self: DPOTrainer, model: object, inputs: object) -> object:
        asked.append(inputs)
        return compute(self, model, inputs)

    monkeypatch.setattr(DPOTrainer, "compute_ref_log_probs", count)
    own = write_jsonl(tmp_path / "pairs.jsonl", preferences(28))
    args = {**PRECOMPUTED, "max_steps": 1, "precompute_ref_batch_size": 7}
    variants = [{}, {"args": {"beta": 0.4}}, {"peft": {"r": 16}}, {"args": {"seed": 3}}]
    one = spec(chunks=1, evaluate=False)
    alike = [spec(chunks=1, evaluate=False, **{**v, "args": {**args, **v.get("args", {})}}) for v in variants]  # type: ignore[arg-type]
    alike = [replace(run, dataset=replace(one.dataset, path=str(own), eval_path=None)) for run in alike]
    train_together(alike, tmp_path / "alike")
    assert len(asked) == 28 / 7
    longer = replace(alike[0], trainer=replace(alike[0].trainer, args={**alike[0].trainer.args, "ld_alpha": 0.5}))
    train_together([longer], tmp_path / "other")
    assert len(asked) == 2 * 28 / 7


def test_a_named_reference_is_loaded_once_and_shared(
    spec: Spec, other_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with a run that trains an adapter on that very model."""
    loaded: list[str] = []
    original = Bases.get

    def get(self: Bases, model: ModelSpec) -> object:
        if model.key not in self._bases:
            loaded.append(model.name)
        return original(self, model)

    monkeypatch.setattr(Bases, "get", get)
    args = {"max_steps": 2}
    compared = [spec(ref_model=other_model, chunks=1, args=args) for _ in range(2)]
    on_it = replace(spec(chunks=1, args=args), model=ModelSpec(name=str(other_model)))
    runs, _ = train_together([*compared, on_it], tmp_path)
    assert [run.state for run in runs] == [RunState.COMPLETED] * 3
    assert loaded == [compared[0].model.name, str(other_model)]


@pytest.mark.usefixtures("hydra_restore_singletons")
def test_a_reference_that_is_not_there_is_named_as_such(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Not as the model that is trained."""
    monkeypatch.chdir(tmp_path)
    rfflow = Shell(capsys, monkeypatch)
    rfflow("+recipe=dpo", "trainer.ref_model.name=./nowhere")
    reference = rfflow.engines[0].runs[0].spec.trainer.ref_model
    assert reference is not None and reference.kwargs["dtype"] == "float32"
    with pytest.raises(ConfigError, match=r"trainer.ref_model.name is './nowhere'"):
        load_base(reference)


def test_a_single_loss_may_be_a_word(spec: Spec, tmp_path: Path) -> None:
    """``loss_type=sigmoid,ipo`` sweeps; a misspelt one is refused before training."""
    (run,), _ = train_together([spec(chunks=1, args={"loss_type": "ipo", "max_steps": 1})], tmp_path / "word")
    assert run.state is RunState.COMPLETED, run.error
    with pytest.raises(ConfigError, match=r"loss_type is 'ipoo'. Did you mean 'ipo'"):
        train_together([spec(chunks=1, args={"loss_type": "ipoo"})], tmp_path / "misspelt")


def test_sft_compares_with_nothing(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    run = run_spec(tiny_model, tiny_data)
    run = replace(run, trainer=replace(run.trainer, ref_model=run.model))
    with pytest.raises(ConfigError, match=r"trl.SFTTrainer takes no 'ref_model'"):
        train_together([run], tmp_path)
