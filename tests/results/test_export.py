"""A run's model is taken away, and loads where rfflow is not."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import constants
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, GenerationConfig

import rfflow
from rfflow.results import commands
from rfflow.worker.finished import merging
from tests.support.finished import QUANTISED, leave_experiment
from tests.support.hub import TOKEN, running_hub
from tests.support.tiny import make_model

IDS = torch.tensor([[7, 40, 41, 42, 90]])


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """An experiment with runs of several kinds; do not write into it."""
    return leave_experiment(
        tmp_path_factory.mktemp("left") / "kinds",
        tiny_model,
        [
            {},
            {"use_dora": True, "target_modules": ["q_proj", "v_proj"]},
            {"use_rslora": True, "modules_to_save": ["lm_head"], "target_modules": ["o_proj"]},
            {"bias": "all", "target_modules": ["q_proj"], "init_lora_weights": "pissa"},
            None,
            {"_target_": "peft.PromptTuningConfig", "task_type": "CAUSAL_LM", "num_virtual_tokens": 3},
        ],
    )


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_TOKEN", raising=False)


def export(*argv: object) -> int:
    return commands.main("export", [str(word) for word in argv])


def by_peft(base: Path | str, final: Path, auto: Any = AutoModelForCausalLM, **kwargs: Any) -> dict[str, torch.Tensor]:
    """Merge as anybody would who has never heard of rfflow."""
    model = auto.from_pretrained(base, **kwargs)
    return dict(PeftModel.from_pretrained(model, str(final)).merge_and_unload().state_dict())


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    """Return the names whose tensors are not equal to the bit."""
    return [name for name in one.keys() | other.keys() if not torch.equal(one[name], other[name])]


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_merged_weights_are_those_of_pefts_own_merge(left: Path, tiny_model: Path, number: int) -> None:
    """To the bit, for LoRA, DoRA, a module that is saved whole, and a start that rewrites its base."""
    assert export(left, "--run", number, "--merge", "--to", "whole") == 0
    written = dict(AutoModelForCausalLM.from_pretrained("whole").state_dict())
    assert not differing(written, by_peft(tiny_model, left / f"runs/{number}/checkpoints/final"))
    plain = dict(AutoModelForCausalLM.from_pretrained(tiny_model).state_dict())
    assert differing(written, plain), "nothing was merged"


def test_an_adapter_is_exported_with_what_it_takes_to_use_it(left: Path, tiny_model: Path) -> None:
    """Its base by a path that holds from everywhere, tokenizer, template, generation config and card; no pickle."""
    assert export(left, "--to", "there/adapter") == 0
    files = {path.name for path in Path("there/adapter").iterdir()}
    assert files >= {"adapter_model.safetensors", "chat_template.jinja", "tokenizer.json", "generation_config.json"}
    assert "training_args.bin" not in files and [path.name for path in Path("there").iterdir()] == ["adapter"]
    assert f'base = AutoModelForCausalLM.from_pretrained("{tiny_model}")' in Path("there/adapter/README.md").read_text()
    model = AutoPeftModelForCausalLM.from_pretrained("there/adapter")
    final = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_model), str(left / "runs/0/checkpoints/final")
    )
    assert torch.equal(model(IDS).logits, final(IDS).logits)
    tokenizer = AutoTokenizer.from_pretrained("there/adapter")
    assert "<|im_start|>user" in tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert GenerationConfig.from_pretrained("there/adapter").eos_token_id == tokenizer.eos_token_id


def test_the_card_tells_what_was_done(left: Path) -> None:
    assert export(left, "--run", 1, "--merge", "--dtype", "bfloat16", "--to", "whole") == 0
    head, _, text = Path("whole/README.md").read_text().removeprefix("---\n").partition("---\n")
    assert yaml.safe_load(head) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["rfflow", "sft"],
    }
    for said in (
        "An adapter (LORA) on model, merged into its weights, trained with `trl.SFTTrainer` for 10 optimizer steps",
        "number 2 of 6 by eval_loss (minimize)",
        "The weights were float32 and were written as bfloat16.",
        "- path: `rows.jsonl`",
        "| 2/2 | 10 | 3 | 4 |",
        "seed=1",
        "use_dora: true",
        "| rfflow | 0 |",
    ):
        assert said in text
    assert "hub_token: (hidden)" in text
    assert AutoModelForCausalLM.from_pretrained("whole").dtype == torch.bfloat16


def test_all_weights_are_a_whole_model_already(left: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(left, "--run", 4, "--to", "whole") == 0
    assert "a whole model" in capsys.readouterr().out
    trained = AutoModelForCausalLM.from_pretrained(left / "runs/4/checkpoints/final").state_dict()
    assert not differing(dict(AutoModelForCausalLM.from_pretrained("whole").state_dict()), dict(trained))


def test_a_head_is_merged_too(tiny_model: Path, tmp_path: Path) -> None:
    """A reward model's, which is saved whole beside the adapter."""
    section = {"auto_class": "AutoModelForSequenceClassification", "num_labels": 1}
    root = leave_experiment(tmp_path / "reward", tiny_model, [{"task_type": "SEQ_CLS"}], **section)
    assert export(root, "--merge", "--to", "whole") == 0
    final = root / "runs/0/checkpoints/final"
    auto = AutoModelForSequenceClassification
    written = dict(auto.from_pretrained("whole").state_dict())
    assert not differing(written, by_peft(tiny_model, final, auto, num_labels=1))
    assert "AutoModelForSequenceClassification" in Path("whole/README.md").read_text()


def test_a_quantised_base_is_dequantised_first(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And that is said: the merged model answers as the base in four bits did with the adapter."""
    pytest.importorskip("bitsandbytes")
    root = leave_experiment(tmp_path / "four", tiny_model, [{}], quantization_config=QUANTISED)
    assert export(root, "--merge", "--to", "whole") == 0
    assert "BnbFourBit" in capsys.readouterr().out.replace("Bnb4Bit", "BnbFourBit")
    whole = AutoModelForCausalLM.from_pretrained("whole")
    assert "quantization_config" not in json.loads(Path("whole/config.json").read_text())
    from transformers import BitsAndBytesConfig

    settings = BitsAndBytesConfig(**{key: value for key, value in QUANTISED.items() if key != "_target_"})
    final = str(root / "runs/0/checkpoints/final")
    four = AutoModelForCausalLM.from_pretrained(tiny_model, quantization_config=settings, device_map="cpu")
    trained_with = PeftModel.from_pretrained(four, final)(IDS).logits
    # Where the CPU has instructions for it, bitsandbytes computes with four bits in bfloat16.
    assert torch.allclose(whole(IDS).logits, trained_with, atol=5e-3)
    again = AutoModelForCausalLM.from_pretrained(tiny_model, quantization_config=settings, device_map="cpu")
    adapted = PeftModel.from_pretrained(again.dequantize(), final)
    assert torch.allclose(whole(IDS).logits, adapted(IDS).logits, atol=1e-4)
    merged = adapted.merge_and_unload().state_dict()
    assert not differing(dict(whole.state_dict()), dict(merged))


def test_tied_weights_part_where_the_adapter_changes_one_of_them(tmp_path: Path) -> None:
    """Else merging would change the embeddings, too, which PEFT warns of and does."""
    base = make_model(tmp_path / "tied", tied=True)
    root = leave_experiment(tmp_path / "x", base, [{"target_modules": ["lm_head", "q_proj"]}, {}])
    assert export(root, "--merge", "--to", "whole") == 0 and export(root, "--run", 1, "--merge", "--to", "other") == 0
    for number, folder in enumerate(("whole", "other")):
        model = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(base), str(root / f"runs/{number}/checkpoints/final")
        )
        answered = AutoModelForCausalLM.from_pretrained(folder)
        assert torch.allclose(answered(IDS).logits, model(IDS).logits, atol=1e-4)
    assert json.loads(Path("other/config.json").read_text())["tie_word_embeddings"]


@pytest.mark.usefixtures("hydra_restore_singletons")
def test_a_run_that_was_trained_knows_its_base(
    tiny_model: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the fingerprint of its weights: not by a name that means another model since."""
    base = make_model(tmp_path / "base")
    words = ["recipe=sft", "dataset=local", f"dataset.path={tiny_data}", "model=hub", "model.name=base", "chunks=1"]
    words += ["trainer.args.max_steps=2", "control.enabled=false", "callbacks.table=null", "loggers=none"]
    handlers = list(logging.root.handlers)
    table = rfflow.sweep(*words, "engine.accelerator=cpu", "lr=1e-2")
    logging.root.handlers[:] = handlers  # Hydra's would go on writing to what this test's output was
    out = Path(table.attrs["dir"]).absolute()
    os.chdir(tmp_path.parent)  # the base's path was relative to where the experiment was started
    try:
        assert export(out, "--merge", "--to", tmp_path / "whole") == 0
        make_model(base, seed=1)
        assert export(out, "--merge", "--to", tmp_path / "other") == 1
        assert "was trained on other weights than those of" in capsys.readouterr().err
        base.rename(tmp_path / "moved")
        assert export(out, "--merge", "--to", tmp_path / "other") == 1
        assert "its base model is not to be had. model.name is 'base'" in capsys.readouterr().err
        assert export(out, "--merge", "--base-model", tiny_model, "--to", tmp_path / "other") == 0
        assert export(out, "--to", tmp_path / "adapter") == 0, "an adapter needs no base to be copied"
    finally:
        os.chdir(tmp_path)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--merge", "--run", "5", "--to", "x"], "trained PROMPT_TUNING, which has no weights to merge"),
        (["--run", "9", "--to", "x"], "has no run 9. Runs: 0, 1, 2, 3, 4, 5"),
        (["--to", "full"], "--to full is not empty"),
        (["--to", "full/file"], "--to full/file is a file"),
        (["--to", "x", "--dtype", "bfloat16"], "say --merge too"),
        (["--to", "x", "--force"], "--force belongs to --push"),
        (
            ["--merge", "--base-model", "wider", "--to", "x"],
            "belongs to another base model than wider: size mismatch for",
        ),
        (
            ["--merge", "--base-model", "nowhere", "--to", "x"],
            "its base model is not to be had. model.name is 'nowhere'",
        ),
        (["--push", "ann/x"], "HF_HUB_OFFLINE says that the hub is not to be asked"),
    ],
)
def test_what_cannot_be_exported_is_said(
    left: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    argv: list[str],
    said: str,
) -> None:
    """In one sentence, with nothing left behind."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    if "wider" in argv:
        from transformers import LlamaConfig, LlamaForCausalLM

        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        LlamaForCausalLM(LlamaConfig(vocab_size=259, **sizes)).save_pretrained("wider")
        AutoTokenizer.from_pretrained(left / "runs/0/checkpoints/final").save_pretrained("wider")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    capsys.readouterr()
    assert export(left, *argv) == 1
    *before, error = capsys.readouterr().err.splitlines()
    assert said in error and error.startswith("rfflow export: ")
    assert all(line.startswith("Loading ") for line in before)
    assert {path.name for path in tmp_path.iterdir()} <= {"full", "wider"}


def test_nothing_half_is_left(left: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Not where a disk or the memory has no room, nor by Ctrl-C in the middle of writing."""
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
        assert export(left, "--merge", "--to", "x") == 1
    assert "and only 1.0 kB are free" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 1000})())
        assert export(left, "--merge", "--to", "x") == 1
    assert "only 1.0 kB are free on the cpu" in capsys.readouterr().err

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(merging, "end_as_tokenizer", interrupted)
        assert export(left, "--merge", "--to", "x") == 130
    assert not list(Path().iterdir())


def test_a_gguf_file_is_llama_cpps_to_write(
    left: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(left, "--gguf", "--to", "whole") == 0
    assert "git clone" in capsys.readouterr().out
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools/convert_hf_to_gguf.py").touch()
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path / "tools"))
    assert export(left, "--gguf", "--to", "again") == 0
    assert f"python {tmp_path}/tools/convert_hf_to_gguf.py again --outfile again.gguf" in capsys.readouterr().out


def test_a_model_is_pushed(left: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """By huggingface_hub, to a server that speaks as the hub does; nothing is made there before all is known."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with running_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        assert export(left, "--push", "ann/first") == 1
        assert "there is no token for the Hugging Face hub" in capsys.readouterr().err
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
        assert export(left, "--push", "ann/first") == 1
        assert "the hub does not take the token (401)" in capsys.readouterr().err
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        assert export(left, "--push", "first", "--private", "--to", "kept") == 0
        files, there = hub.repositories["ann/first"], {path.name for path in Path("kept").iterdir()}
        assert files.keys() == there and hub.private == {"ann/first"} and hub.messages == ["Run 0 of kinds"]
        assert files["adapter_model.safetensors"] == Path("kept/adapter_model.safetensors").read_bytes()
        assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "model", "a path of this machine"
        assert b'PeftModel.from_pretrained(base, "ann/first")' in files["README.md"]
        capsys.readouterr()
        assert export(left, "--run", 1, "--push", "ann/first") == 1
        assert "ann/first exists on the hub" in capsys.readouterr().err
        assert export(left, "--run", 1, "--push", "ann/first", "--force") == 0
        assert hub.messages[-1] == "Run 1 of kinds"
        assert export(left, "--push", "a/b/c") == 1
        assert "--push a/b/c is no name of a repository" in capsys.readouterr().err
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert export(left, "--push", "ann/second") == 1
    assert "the hub cannot be reached" in capsys.readouterr().err


@pytest.mark.slow
def test_trls_own_way_of_pushing_works_beside_it(tiny_model: Path, tiny_data: Path) -> None:
    """Each run of a sweep into a repository of its own, while they take turns; and no token goes along.

    Two into one are refused: tests/config/test_claims.py.
    """
    words = ["+recipe=sft", "dataset=local", f"dataset.path={tiny_data}", "model=hub", f"model.name={tiny_model}"]
    words += ["chunks=2", "trainer.args.max_steps=4", "control.enabled=false", "loggers=none", "engine.accelerator=cpu"]
    words += ["trainer.args.push_to_hub=true", "trainer.args.hub_token=${oc.env:MINE}", "hydra.sweep.dir=out"]
    words += ["--multirun", "lr=1e-2,1e-3", "trainer.args.hub_model_id=ann/x-${hydra:job.num}"]
    with running_hub() as hub:
        environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HUB_DISABLE_XET": "1", "MINE": TOKEN}
        environment["HF_HUB_OFFLINE"] = "0"
        done = subprocess.run([sys.executable, "-m", "rfflow", *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(hub.repositories) == ["ann/x-0", "ann/x-1"]
    for number in (0, 1):
        final = Path(f"out/runs/{number}/checkpoints/final/adapter_model.safetensors")
        assert hub.repositories[f"ann/x-{number}"]["adapter_model.safetensors"] == final.read_bytes()
    assert not [name for files in hub.repositories.values() for name in files if TOKEN.encode() in files[name]]
    assert not [path for path in Path().rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


@pytest.mark.slow
def test_the_winner_of_the_demo_is_taken_away_and_talked_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """End to end on SmolLM2 from its .gguf file: trained, asked, merged, and loaded by transformers alone."""
    monkeypatch.setenv("RFFLOW_CACHE", str(tmp_path / "cache"))
    words = ["recipe=sft", "dataset.max_samples=20", "chunks=1", "trainer.args.max_steps=3", "control.enabled=false"]
    handlers = list(logging.root.handlers)
    table = rfflow.sweep(*words, "callbacks.table=null", "loggers=none", "lr=1e-3,1e-4")
    logging.root.handlers[:] = handlers
    out = table.attrs["dir"]
    Path("p.jsonl").write_text('{"prompt": "What is a stock split?"}\n')
    capsys.readouterr()
    argv = [out, "--prompts", "p.jsonl", "--runs", "all", "--base", "max_new_tokens=12"]
    assert commands.main("generate", argv) == 0
    answers = json.loads(capsys.readouterr().out)
    assert {"base", "run_0", "run_1"} < answers.keys() and len(answers["base"]) > 10
    best = commands.main("show", [out, "--json"]) or json.loads(capsys.readouterr().out)["best"]
    assert export(out, "--merge", "--to", "whole") == 0 and export(out, "--to", "adapter") == 0
    model, tokenizer = AutoModelForCausalLM.from_pretrained("whole"), AutoTokenizer.from_pretrained("whole")
    prompt = [{"role": "user", "content": "What is a stock split?"}]
    given = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    found = model.generate(**given, max_new_tokens=12, do_sample=False)[0, given["input_ids"].shape[1] :]
    assert tokenizer.decode(found, skip_special_tokens=True) == answers[f"run_{best}"]
    beside = AutoPeftModelForCausalLM.from_pretrained("adapter")
    assert torch.allclose(beside(given["input_ids"]).logits, model(given["input_ids"]).logits, atol=1e-3)
