"""What a clone's configuration may bring, told from the configuration: everything that becomes code must be known."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rfflow.control.code import Named
from rfflow.errors import ConfigError

STARTED: dict[str, Any] = {
    "model": {"name": "maker/base", "tokenizer": None, "dtype": "float32"},
    "dataset": {
        "path": "train.jsonl",
        "split": "train",
        "formatting_func": {"_target_": "mine.to_chat", "system": "?"},
    },
    "peft": {"_target_": "peft.LoraConfig", "r": 8, "target_modules": ["q_proj"], "megatron_core": "megatron.core"},
    "trainer": {
        "_target_": "trl.GRPOTrainer",
        "reward_funcs": ["mine.reward", {"_target_": "mine.other", "kind": "strict"}],
        "callbacks": [],
        "args": {"_target_": "trl.GRPOConfig", "learning_rate": 1e-4, "report_to": "none", "optim": "adamw_torch"},
    },
    "lr": 1e-4,
}


@pytest.fixture(scope="module")
def named() -> Named:
    named = Named()
    named.add(STARTED)
    return named


def changed(place: str, value: Any) -> dict[str, Any]:
    """Return the configuration with another value somewhere."""
    config: dict[str, Any] = json.loads(json.dumps(STARTED))
    *path, last = place.split(".")
    node = config
    for key in path:
        node = node.setdefault(key, {})
    node[last] = value
    return config


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("lr", 5e-4),
        ("trainer.args.learning_rate", 1e-3),
        ("trainer.args.bf16", True),
        ("trainer.args.lr_scheduler_type", "cosine"),
        ("trainer.args.optim", "sgd"),
        ("trainer.args.loss_type", ["sigmoid", "sft"]),
        ("trainer.args.lr_scheduler_kwargs", {"num_cycles": 2}),
        ("trainer.args.lr_scheduler_kwargs", '{"num_cycles": 2}'),
        ("trainer.args.model_init_kwargs", {"trust_remote_code": False, "use_cache": False}),
        ("trainer.args.reward_weights", [1.0, 0.5]),
        ("trainer.args.eos_token", "<|im_end|>"),
        ("trainer.args.torch_compile_mode", "max-autotune"),
        ("trainer.reward_funcs", ["mine.reward"]),
        ("trainer.reward_funcs", "mine.other"),
        ("trainer.reward_funcs", [{"_target_": "mine.reward", "kind": "strict", "weight": 2}]),
        ("peft.target_modules", "all-linear"),
        ("peft.target_modules", r".*\.(q|v)_proj"),
        ("peft.init_lora_weights", "pissa_niter_4"),
        ("peft", None),
        ("model.dtype", "bfloat16"),
        ("model.attn_implementation", "sdpa"),
        ("model.tokenizer", "maker/base"),
        ("trainer.ref_model", "maker/base"),
        ("dataset.split", "train[:10%]"),
        ("dataset.eval_path", "train.jsonl"),
        ("dataset.eval_split", {"easy": "test[:10]"}),
        ("dataset.datasets", {"one": {"path": None, "fraction": 0.5, "split": "train"}}),
        ("dataset.columns", {"question": "prompt"}),
        ("dataset.formatting_func.system", "Answer yes/no: be brief."),
        ("dataset.formatting_func.maximum", 300),
        ("remark", "tried on a whim"),
        ("prompt.user", "{{ question }}"),
        ("retriever.k", 5),
        ("generator.max_new_tokens", 8),
        ("pipeline.style", "in few words"),
        ("model.trust_remote_code", False),
        ("trainer.callbacks", []),
        ("dataset.columns", {}),
        ("dataset.formatting_func.system", "What costs $5 and 50% more?"),
    ],
)
def test_numbers_words_and_what_is_named_may_come(named: Named, place: str, value: Any) -> None:
    named.check(changed(place, value))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        # Hydra calls it, wherever it stands.
        ("pipeline", {"_target_": "os.system"}),
        ("metrics.mine", "os.system"),
        ("corpus.path", "secrets.jsonl"),
        ("corpus.path", "my secrets.jsonl"),
        ("generator.adapter", "some where"),
        ("generator.adapter", 3),
        ("prompt.user", "${oc.env:HOME}"),
        ("trainer.data_collator", {"_target_": "os.system", "command": "x"}),
        ("dataset.formatting_func._target_", "os.system"),
        ("trainer.callbacks", [{"_target_": "mine.reward"}]),
        ("trainer.args.lr_scheduler_kwargs", {"x": [{"_target_": "os.system"}]}),
        ("peft.runtime_config", {"_target_": "mine.to_chat"}),
        ("dataset.formatting_func._args_", [1]),
        ("dataset.formatting_func._partial_", True),
        # A text is imported.
        ("trainer.reward_funcs", ["/path/file.py:f"]),
        ("trainer.reward_funcs", "os.system"),
        ("trainer.reward_funcs", ["antigravity"]),
        ("trainer.reward_funcs", [{"_target_": "mine.reward", "kind": "lenient.module"}]),
        ("trainer.compute_metrics", "mine.reward"),
        ("trainer.data_collator", "os.system"),
        ("trainer.callbacks", ["os.system"]),
        ("trainer.tools", ["os.system"]),
        ("trainer.environment_factory", "file.py:make"),
        ("trainer.rollout_func", "os.system"),
        ("dataset.formatting_func", "mine.reward"),
        ("evaluation.generate.scores", ["os.system"]),
        ("peft.megatron_core", "evil"),
        ("peft.auto_mapping", {"base_model_class": "X", "parent_library": "evil"}),
        ("trainer._target_", "evil.Trainer"),
        ("trainer.args._target_", "evil.Config"),
        # A model, with code or pickles in it.
        ("trainer.reward_funcs", ["someone/judge"]),
        ("model.name", "/tmp/model"),
        ("model.name", "gpt2"),
        ("model.tokenizer", "../tokenizer"),
        ("model.revision", "evil"),
        ("model.subfolder", "evil"),
        ("model.gguf_file", "evil.gguf"),
        ("trainer.ref_model.name", "someone/model"),
        ("model.adapter_kwargs", {"revision": "x"}),
        ("trainer.args.chat_template_path", "someone/model"),
        ("trainer.args.model_revision", "x"),
        ("peft.corda_config", {"cache_file": "x.pt"}),
        ("trainer.args.resume_from_checkpoint", "my checkpoint"),
        # What lets code come with it.
        ("model.trust_remote_code", True),
        ("model.trust_remote_code", "true"),
        ("model.trust_remote_code", 1),
        ("model.weights_only", False),
        ("model.use_safetensors", False),
        ("trainer.args.trust_remote_code", True),
        ("trainer.args.model_init_kwargs", {"trust_remote_code": True}),
        ("trainer.args.model_init_kwargs", '{"trust_remote_code": true}'),
        ("trainer.args.model_init_kwargs", '{"x": {"trust_remote_code": "True"}}'),
        ("trainer.args.model_init_kwargs", {"x": '{"trust_remote_code": true}'}),
        ("trainer.args.model_init_kwargs", '{"trust_remote_code": {"a": 1}}'),
        ("trainer.args.model_init_kwargs", '{"trust_remote_code": [[]]}'),
        ("trainer.args.model_init_kwargs", '{"trust_remote_code": [{}, false]}'),
        ("trainer.args.model_init_kwargs", '{"weights_only": 0}'),
        # Kernels of the hub.
        ("model.attn_implementation", "kernels-community/flash-attn"),
        ("model.attn_implementation", "flash_attention_2"),
        ("model.use_kernels", True),
        ("model.allow_all_kernels", True),
        ("model.kernel_config", {"RMSNorm": "someone/kernel:RMSNorm"}),
        ("trainer.args.model_init_kwargs", '{"attn_implementation": "someone/kernel"}'),
        # Data: scripts, pickles, files that are not for everybody's eyes.
        ("dataset.path", "/home/me/.ssh/id_rsa"),
        ("dataset.eval_path", "other.jsonl"),
        ("dataset.name", "someone/data"),
        ("dataset.config", "other"),
        ("dataset.config", 2024),
        ("dataset.path", 1),
        ("dataset.path", ["train.jsonl", "other.jsonl"]),
        ("dataset.eval_path", {"easy": 1}),
        ("dataset.datasets", [{"path": "other.jsonl"}]),
        ("dataset.datasets", {"one": {"name": 1}}),
        # Settings that are files, and texts that only look like JSON.
        ("trainer.args.deepspeed", "ds.json"),
        ("trainer.args.accelerator_config", "accelerate.json"),
        ("trainer.args.fsdp_config", "{broken"),
        ("trainer.args.torch_compile_backend", "evil"),
        ("trainer.args.optim_args", "x=y"),
        ("trainer.args.report_to", "wandb"),
        ("model.quantization_config", {"_target_": "evil.Config"}),
        ("model.quantization_config", '{"bits": 4}'),
        # What is sent or fetched elsewhere, and where files are written.
        ("trainer.args.push_to_hub", True),
        ("trainer.args.hub_model_id", "someone/theirs"),
        ("trainer.args.use_vllm", True),
        ("trainer.args.vllm_server_base_url", "http://elsewhere"),
        ("trainer.args.output_dir", "/home/me/.config"),
        # Sentences that are none, and sentences where nobody reads any.
        ("dataset.formatting_func.system", "/tmp/my file"),
        ("dataset.formatting_func.system", "a b ${oc.env:HOME}"),
        ("dataset.formatting_func.system", "http://a b"),
        ("dataset.formatting_func.system", "$HOME/a b"),
        ("dataset.formatting_func.system", "my folder/../x"),
        ("model.name", "my model"),
        ("remark", "tried ${x} y"),
        ("remark", "word"),
    ],
)
def test_nothing_else_may(named: Named, place: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=r"may not|may bring nothing"):
        named.check(changed(place, value))


def test_a_sentence_that_is_a_file_here_is_none(named: Named, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    named.check(changed("dataset.formatting_func.system", "my file"))
    (tmp_path / "my file").touch()
    with pytest.raises(ConfigError, match=r"formatting_func.system would be 'my file'"):
        named.check(changed("dataset.formatting_func.system", "my file"))


def test_what_may_bring_code_of_its_own_is_not_put_together_anew() -> None:
    """One configuration trusts the code of its model, and another has a model without being trusted."""
    trusted = {"model": {"name": "maker/known", "trust_remote_code": True}, "dataset": {"path": "a.jsonl"}}
    other = {"model": {"name": "maker/unknown"}, "dataset": {"path": "a.jsonl"}}
    named = Named()
    named.add(trusted)
    named.add(other)
    named.check(trusted | {"lr": 1})
    named.check(other | {"lr": 1})
    with pytest.raises(ConfigError, match=r"model.trust_remote_code lets code come with what is loaded"):
        named.check({"model": {"name": "maker/unknown", "trust_remote_code": True}, "dataset": {"path": "a.jsonl"}})
