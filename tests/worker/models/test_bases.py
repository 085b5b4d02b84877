"""One base, many structures: what is shared, what is a run's own, and what happens when somebody writes to it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralConfig, MixtralForCausalLM, TrainerCallback

from rfflow.config.spec import ExperimentSpec, ModelSpec
from rfflow.engine.engine import Engine
from rfflow.errors import ConfigError, EngineError, RunFailed
from rfflow.runs.paths import ExperimentPaths
from rfflow.runs.run import RunState
from rfflow.worker.models.bases import Base, Bases, _checksum
from tests.support.plain import train_alone
from tests.support.tiny import make_tokenizer, run_spec
from tests.worker.training.test_exactness import train_together


@pytest.fixture
def base(tiny_model: Path) -> Base:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.requires_grad_(False)
    return Base(model, AutoTokenizer.from_pretrained(tiny_model))


def test_structures_share_the_weights_and_nothing_else(base: Base) -> None:
    """A patched forward, a wrapped layer and an edited config stay with their run."""
    one, two = base.structure(), base.structure()
    assert all(a is b for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert all(a is b for a, b in zip(one.buffers(), base.model.buffers(), strict=True))
    one.config.pad_token_id = 77
    get_peft_model(one, LoraConfig(r=2, target_modules=["q_proj"]))
    assert two.config.pad_token_id != 77
    assert not any("lora" in name for name, _ in two.named_parameters())


def test_a_copy_shares_nothing(base: Base) -> None:
    copy = base.copy()
    assert all(p.requires_grad for p in copy.parameters())
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.zero_()
    base.check_untouched("run 0")
    assert not any(p.requires_grad for p in base.model.parameters())


def test_a_base_parameter_that_a_run_trains_becomes_its_own(base: Base) -> None:
    """LoRA with bias="all", say; tied weights stay tied."""
    model = base.structure()
    shared = model.model.embed_tokens.weight
    model.lm_head.weight = shared
    shared.requires_grad_(True)
    assert base.unshare(model) == 1
    assert model.model.embed_tokens.weight is not shared and model.model.embed_tokens.weight.requires_grad
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not shared.requires_grad


def test_writing_to_the_shared_weights_is_found_out(base: Base) -> None:
    base.check_untouched("run 1")
    with torch.no_grad():
        next(base.structure().parameters()).add_(1)
    with pytest.raises(EngineError, match=r"run 1 changed model.embed_tokens.weight of the base model"):
        base.check_untouched("run 1")


def test_a_weight_or_a_layer_in_the_place_of_another_is_found_out(base: Base) -> None:
    """Though nothing was written to what was there, and the place is the only thing that says so."""
    base.check_untouched("run 1")
    attention, layers = base.model.model.layers[1].self_attn, base.model.model.layers
    weight = attention.q_proj.weight
    attention.q_proj._parameters["weight"] = torch.nn.Parameter(weight + 1, requires_grad=False)
    with pytest.raises(EngineError, match=r"run 1 changed model.layers.1.self_attn.q_proj.weight of the base"):
        base.check_untouched("run 1")
    attention.q_proj._parameters["weight"] = weight
    base.check_untouched("run 1")
    layers[0] = torch.nn.Identity()
    with pytest.raises(EngineError, match=r"run 1 changed model.layers.0\S+ and \d+ more of the base"):
        base.check_untouched("run 1")


# --- who is to blame, and for what ------------------------------------------------------------------------------------


@pytest.fixture
def reloadable(tiny_model: Path) -> Base:
    """A base that knows where it came from."""

    def load(spec: ModelSpec) -> Any:
        return AutoModelForCausalLM.from_pretrained(spec.name), AutoTokenizer.from_pretrained(spec.name)

    return Bases(load, lambda model: model).get(ModelSpec(str(tiny_model)))


def test_writing_what_was_there_is_no_change(reloadable: Base) -> None:
    """As PEFT does where its adapters hang on single parameters; the next look is at the counters alone again."""
    weight = next(reloadable.structure().parameters())
    with torch.no_grad():
        weight.copy_(weight.clone())
        weight.set_(weight.detach().clone())
    reloadable.check_untouched("Run 1")
    reloadable._checksums = {}
    reloadable.check_untouched("Run 1")


@pytest.mark.parametrize("how", ["a value", "rows", "columns", "the type", "a buffer", "the tokenizer"])
def test_whatever_was_changed_is_put_back(reloadable: Base, tiny_model: Path, how: str) -> None:
    structure, tokenizer = reloadable.structure(), reloadable.tokenizer()
    reloadable.part_tokenizer()
    other, third = reloadable.structure(), reloadable.tokenizer()
    reloadable.part_tokenizer()
    weight = structure.model.embed_tokens.weight
    name = "model.embed_tokens.weight"
    with torch.no_grad():
        match how:
            case "a value":
                weight[3, 3] = torch.nextafter(weight[3, 3], torch.tensor(9.0))
            case "rows":
                weight[[1, 2]] = weight[[2, 1]]
            case "columns":
                weight[:, [1, 2, 3, 4]] = weight[:, [3, 4, 1, 2]]
            case "the type":
                weight.data = weight.data.bfloat16()
            case "a buffer":
                name = next(name for name, _ in structure.named_buffers())
                structure.get_buffer(name).mul_(2)
            case "the tokenizer":
                name = how
                tokenizer.add_tokens(["<b>"])
    with pytest.raises(RunFailed, match=f"Run 1 changed {name} of the base model.*They go on"):
        reloadable.check_untouched("Run 1")
    fresh = AutoModelForCausalLM.from_pretrained(tiny_model)
    for (one, loaded), (_, now) in zip(fresh.state_dict().items(), other.state_dict().items(), strict=True):
        assert torch.equal(loaded, now) and loaded.dtype == now.dtype, one
    assert all(torch.equal(a, b) for a, b in zip(fresh.buffers(), other.buffers(), strict=True))
    assert "<b>" not in third.get_vocab()
    reloadable.check_untouched("Run 2")


def test_what_cannot_be_put_back_ends_the_experiment(reloadable: Base, tiny_model: Path, tmp_path: Path) -> None:
    with torch.no_grad():
        next(reloadable.structure().parameters()).add_(1)
    reloadable._reload = lambda: AutoModelForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(EngineError, match=r"Run 1 changed model.embed_tokens.weight .* cannot be restored: .*Error"):
        reloadable.check_untouched("Run 1")
    other = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        other.model.embed_tokens.weight.mul_(2)
    reloadable._reload = lambda: other
    with pytest.raises(EngineError, match=r"embed_tokens.weight is another one now where it was loaded from"):
        reloadable.check_untouched("Run 1")


def test_tensors_that_cannot_be_read_count_as_changed() -> None:
    assert _checksum(torch.zeros(2, device="meta")) is None
    assert _checksum(torch.zeros(0)) == _checksum(torch.zeros(0)) is not None
    assert _checksum(torch.tensor(1.0)) != _checksum(torch.tensor(2.0))


class Vandal(TrainerCallback):
    """A user's callback that writes to the base at a hook."""

    def __init__(self, hook: str, step: int, raises: bool = False):
        def write(args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            if state.global_step == step:
                with torch.no_grad():
                    next(p for p in model.parameters() if not p.requires_grad).add_(1)
                if raises:
                    raise ValueError("and then it breaks")

        setattr(self, hook, write)


@pytest.mark.parametrize(
    ("args", "done", "said"),
    [
        ({"hook": "on_step_end", "step": 3}, 2, "Run 0 changed base_model.model"),
        ({"hook": "on_step_end", "step": 3, "raises": True}, 2, "and then it breaks"),
        ({"hook": "on_train_end", "step": 6}, 4, "Run 0 changed base_model.model"),
    ],
    ids=["in a chunk", "and raises", "at the end"],
)
def test_a_run_that_changes_the_base_fails_alone(
    tiny_model: Path, tiny_data: Path, tmp_path: Path, args: dict[str, Any], done: int, said: str
) -> None:
    """The other ends as its script alone does; of the one that fails nothing is left that could be trusted."""
    good = run_spec(tiny_model, tiny_data, args={"max_steps": 6, "learning_rate": 1e-2}, chunks=12)
    callback = {"_target_": "tests.worker.models.test_bases.Vandal", **args}
    bad = replace(good, trainer=replace(good.trainer, callbacks=(callback,)))
    (vandal, other), together = train_together([bad, good], tmp_path / "experiment")
    assert (vandal.state, other.state) == (RunState.FAILED, RunState.COMPLETED), (vandal.error, other.error)
    assert said.replace("base_model.model", "model.embed_tokens.weight") in str(vandal.error)
    assert vandal.chunks[-1].step == done and not vandal.paths.final.exists() and other.paths.final.exists()
    assert not together["1"].differences(train_alone(good, tmp_path / "alone"))


def test_a_run_that_changes_the_base_when_it_is_built_is_refused(
    tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    """Before anybody trains; else the next to come to a boundary would be blamed."""
    good = run_spec(tiny_model, tiny_data, args={"max_steps": 6}, chunks=12)
    callback = {"_target_": "tests.worker.models.test_bases.Vandal", "hook": "on_train_begin", "step": 0}
    engine = Engine(ExperimentSpec(name="test", accelerator="cpu"), ExperimentPaths(tmp_path))
    engine.add(good, 0)
    engine.add(replace(good, trainer=replace(good.trainer, callbacks=(callback,))), 1)
    with pytest.raises(ConfigError, match=r"Run 1.*: Run 1 changed model.embed_tokens.weight"):
        engine.run()
    engine.close()


def test_adapters_of_single_parameters_train_as_in_the_script_alone(tiny_data: Path, tmp_path: Path) -> None:
    """The only LoRA on fused experts: PEFT writes to the base at each pass, what stood there."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    experts = {"num_key_value_heads": 2, "num_local_experts": 4, "vocab_size": 320}
    MixtralForCausalLM(MixtralConfig(**sizes, **experts, sliding_window=None)).save_pretrained(tmp_path / "moe")
    make_tokenizer().save_pretrained(tmp_path / "moe")
    peft = {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.down_proj"], "lora_dropout": 0.0}
    rates = (1e-2, 1e-3)
    specs = [
        run_spec(tmp_path / "moe", tiny_data, args={"max_steps": 6, "learning_rate": rate}, peft=peft, chunks=12)
        for rate in rates
    ]
    runs, together = train_together(specs, tmp_path / "experiment")
    assert [(run.state, run.error) for run in runs] == [(RunState.COMPLETED, None)] * 2
    for number, spec in enumerate(specs):
        assert not together[str(number)].differences(train_alone(spec, tmp_path / "alone" / str(number)))
