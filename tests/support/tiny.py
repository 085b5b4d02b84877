"""Small real things to train on, made on the spot: a two-layer Llama, its tokenizer, a few rows, a run on them.

Heavy libraries are imported inside the functions, so that tests which need none of them stay quick.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from rfflow.config.spec import DatasetSpec, ModelSpec, TrainerSpec, TrainSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, START, END = "<|pad|>", "<|im_start|>", "<|im_end|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

ARGS: Mapping[str, Any] = MappingProxyType(
    {
        "max_length": 64,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 4,
        "activation_checkpointing": False,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "seed": 42,
        "data_seed": 42,
        "use_cpu": True,
        "bf16": False,
    }
)

LORA: Mapping[str, Any] = MappingProxyType(
    {
        "_target_": "peft.LoraConfig",
        "r": 4,
        "target_modules": ["q_proj", "v_proj"],
        "lora_dropout": 0.1,
        "task_type": "CAUSAL_LM",
    }
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token a byte, which needs no training: 256 bytes and three special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [PAD, START, END, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[START],
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
    )


def make_model(folder: Path, *, tied: bool = False, layers: int = 2, hidden: int = 64, seed: int = 0) -> Path:
    """Save a small Llama with seeded float32 weights, and its tokenizer, in `folder`; return the folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=2 * hidden,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_rows(rows: int = 96) -> list[dict[str, str]]:
    """Return sums in words, of different lengths, no two alike."""
    pairs = [(first, second) for first in range(1, 41) for second in (3, 17, 256)]
    chosen = [pairs[index * 37 % len(pairs)] for index in range(rows)]
    assert len(set(chosen)) == rows, f"at most {len(pairs)} different rows"
    return [
        {"prompt": f"What is {first} plus {second}? ", "completion": f"{first} plus {second} is {first + second}."}
        for first, second in chosen
    ]


def make_data(file: Path, rows: int = 96) -> Path:
    """Write `rows` rows with the columns prompt and completion as JSONL; return the file."""
    return write_jsonl(file, make_rows(rows))


def write_jsonl(file: Path, rows: list[dict[str, Any]]) -> Path:
    """Write one JSON object a line; return the file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def run_spec(
    model: Path | str,
    data: Path | str,
    *,
    args: Mapping[str, Any] = MappingProxyType({}),
    peft: Mapping[str, Any] | None = MappingProxyType({}),
    chunks: int = 4,
    evaluate: bool = True,
    eval_size: float = 0,
    model_kwargs: Mapping[str, Any] = MappingProxyType({}),
    dataset: Mapping[str, Any] = MappingProxyType({}),
    trainer: str = "trl.SFTTrainer",
    args_target: str = "trl.SFTConfig",
) -> TrainSpec:
    """Return a run of `model` on `data`; `args` and `peft` override ARGS and LORA, ``peft=None`` is no adapter."""
    return TrainSpec(
        model=ModelSpec(name=str(model), kwargs=dict(model_kwargs)),
        dataset=DatasetSpec(path=str(data), eval_size=eval_size, **dataset),
        trainer=TrainerSpec(target=trainer, args_target=args_target, args={**ARGS, **args}),
        peft=None if peft is None else {**LORA, **peft},
        chunks=chunks,
        evaluate=evaluate,
    )
