"""Runs answer: the prompts of a file, and in a conversation."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from rfflow.results import commands
from rfflow.results.finished import finished
from rfflow.results.opened import open_experiment
from rfflow.worker.finished import loading, side_by_side
from tests.support.finished import leave_experiment
from tests.support.tiny import make_model, write_jsonl

ROWS = [
    {"prompt": "What is 3 plus 4?", "id": 7},
    {"messages": [{"role": "user", "content": "A longer one, please."}, {"role": "assistant", "content": "x"}]},
    {"prompt": [{"role": "system", "content": "Its own."}, {"role": "user", "content": "Hi"}]},
]


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Two adapters, one of them with a copy of what it trains besides, and all weights; do not write into it."""
    kinds = [{"r": 4}, {"bias": "all", "target_modules": ["q_proj"]}, None]
    return leave_experiment(tmp_path_factory.mktemp("left") / "x", tiny_model, kinds)


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def say(command: str, *argv: object) -> int:
    return commands.main(command, [str(word) for word in [*argv, "--accelerator", "cpu"]])


def alone(model: Any, folder: Path, prompt: Any, **settings: Any) -> str:
    """Answer one prompt as a script without rfflow would."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    found = model.eval().generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **settings)
    return str(tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True))


def test_every_run_answers_as_it_would_alone(
    left: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In batches, beside others and the base, which is loaded once; what was in the rows stays there."""
    loads = []
    monkeypatch.setattr(
        loading, "load_base", lambda *args, of=loading.load_base, **kw: loads.append(1) or of(*args, **kw)
    )
    write_jsonl(Path("p.jsonl"), ROWS)
    argv = ["--prompts", "p.jsonl", "--runs", "2,0,1", "--base", "--batch-size", 2, "--system", "Be brief."]
    assert say("generate", left, *argv, "max_new_tokens=12") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [list(row) for row in rows] == [[*before, "base", "run_2", "run_0", "run_1"] for before in ROWS]
    assert rows[0]["id"] == 7 and len(loads) == 1
    system = {"role": "system", "content": "Be brief."}
    prompts = [
        [system, {"role": "user", "content": ROWS[0]["prompt"]}],
        [system, ROWS[1]["messages"][0]],
        ROWS[2]["prompt"],
    ]
    for name in ("base", "run_0", "run_1", "run_2"):
        model = AutoModelForCausalLM.from_pretrained(tiny_model)
        folder = left / f"runs/{name[-1]}/checkpoints/final"
        if name == "run_2":
            model = AutoModelForCausalLM.from_pretrained(folder)
        elif name != "base":
            model = PeftModel.from_pretrained(model, str(folder))
        expected = [alone(model, tiny_model, prompt, max_new_tokens=12) for prompt in prompts]
        assert [row[name] for row in rows] == expected, name
    assert len({row["run_0"] for row in rows} | {row["base"] for row in rows}) > 3, "they say all the same"


def test_runs_share_the_weights_of_their_base(left: Path) -> None:
    """Adapters lie around the same tensors, but where one rewrites them."""
    opened = open_experiment(left)
    runs = [finished(opened, run) for run in opened.experiment.runs]
    voices = side_by_side.load_voices([runs[0], runs[0], runs[1]], with_base=True, accelerator="cpu")
    weights = [{tensor.data_ptr() for tensor in voice.model.parameters() if tensor.numel() > 4000} for voice in voices]
    assert weights[0] == weights[1] == weights[2] and weights[0].isdisjoint(weights[3])


def test_an_adapter_has_the_precision_it_was_saved_in(tiny_model: Path, tmp_path: Path) -> None:
    """On a base in half precision PEFT would make each one float32, whatever it was trained in."""
    root = leave_experiment(tmp_path / "half", tiny_model, [{}, {}], dtype="bfloat16")
    file = root / "runs/1/checkpoints/final/adapter_model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(file).items()}, file)
    opened = open_experiment(root)
    runs = [finished(opened, run) for run in opened.experiment.runs]
    voices = side_by_side.load_voices(runs, accelerator="cpu")
    kinds = [{t.dtype for name, t in voice.model.named_parameters() if "lora_" in name} for voice in voices]
    assert kinds == [{torch.float32}, {torch.bfloat16}]


def test_what_is_sampled_can_be_repeated(left: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Sampling is asked for by any of its arguments, and drawn alike for every run."""
    write_jsonl(Path("p.jsonl"), ROWS[:1])
    said = []
    for seed in (1, 1, 2):
        assert say("generate", left, "--prompts", "p.jsonl", "temperature=1.5", "max_new_tokens=9", "--seed", seed) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != said[2]


@pytest.mark.parametrize(
    ("row", "argv", "said"),
    [
        ('{"prompt": "x"}', ["max_new_token=3"], "has no 'max_new_token'. Did you mean 'max_new_tokens'"),
        ('{"prompt": "x"}', ["max_new_tokens=0"], "max_new_tokens is 0. Allowed: a whole number from 1 up"),
        ('{"prompt": "x"}', ["temperature=-1"], "run 0 cannot generate so: `temperature` (=-1) has to be"),
        ('{"prompt": "x"}', ["max_new_tokens=600"], "are more than the 512 that run 0 can look at"),
        ('{"prompt": "x"}', ["--raw", "--system", "y"], "Say one of both"),
        ('{"prompt": "x"}', ["--run", "8"], "has no run 8"),
        ('{"prompt": "x", "run_0": 3}', [], "has a column run_0, where the answers would go"),
        ('{"question": "x"}', [], "p.jsonl, line 1 has neither prompt nor messages"),
        ('{"prompt": "x"', [], "p.jsonl, line 1 is no JSON"),
        ("", [], "p.jsonl is empty"),
        ('{"prompt": "x"}', ["--to", "p.jsonl"], "p.jsonl exists, and is not written over"),
    ],
)
def test_what_cannot_be_asked_is_said(
    left: Path, capsys: pytest.CaptureFixture[str], row: str, argv: list[str], said: str
) -> None:
    Path("p.jsonl").write_text(row + "\n")
    assert say("generate", left, "--prompts", "p.jsonl", *argv) == 1
    found = capsys.readouterr()
    assert said in found.err and not found.out and Path("p.jsonl").read_text() == row + "\n"


def test_a_head_that_scores_does_not_answer(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    section = {"auto_class": "AutoModelForSequenceClassification", "num_labels": 1}
    root = leave_experiment(tmp_path / "reward", tiny_model, [{"task_type": "SEQ_CLS"}], **section)
    write_jsonl(Path("p.jsonl"), ROWS)
    assert say("generate", root, "--prompts", "p.jsonl") == 1
    assert "is no model that writes text" in capsys.readouterr().err


# --- chat -------------------------------------------------------------------------------------------------------------


def typed(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def test_a_conversation_goes_on_with_what_was_said(
    left: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each of several has its own history; /system and /reset begin again, /set holds from then on."""
    typed(monkeypatch, "Hi", "And?", "/reset", "/system Be brief.", "Hi", "/set max_new_tokens=3", "Hi", "/quit", "no")
    assert say("chat", left, "--runs", "0,2", "max_new_tokens=6") == 0
    lines = [line for line in capsys.readouterr().out.split("\nrun ") if line]
    said = [line.partition("> ")[2] for line in "\nrun ".join(lines).replace("\nrun ", "\x00run ").split("\x00")]
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_model), str(left / "runs/0/checkpoints/final")
    )
    user, system = {"role": "user", "content": "Hi"}, {"role": "system", "content": "Be brief."}
    first = alone(model, tiny_model, [user], max_new_tokens=6)
    talk = [user, {"role": "assistant", "content": first}, {"role": "user", "content": "And?"}]
    second = alone(model, tiny_model, talk, max_new_tokens=6)
    third = alone(model, tiny_model, [system, user], max_new_tokens=6)
    talk = [system, user, {"role": "assistant", "content": third}, user]
    fourth = alone(model, tiny_model, talk, max_new_tokens=3)
    assert len(said) == 8 and [text.rstrip("\n") for text in said[0::2]] == [first, second, third, fourth]
    assert "Forgotten." in said[3] and "Begun again with that." in said[3] and "max_new_tokens=3" in said[5]


def test_an_answer_is_stopped_and_the_chat_goes_on(
    left: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By Ctrl-C; what was said until then stays in the history. A mistake does not end it either."""
    seen: list[Any] = []
    answers = side_by_side.Voice.answers

    def interrupted(self: Any, prompts: Any, settings: Any, streamer: Any = None) -> list[str]:
        seen.append(prompts[0])
        if len(seen) > 1:
            return answers(self, prompts, settings, streamer)
        streamer.on_finalized_text("half an ans")
        raise KeyboardInterrupt

    monkeypatch.setattr(side_by_side.Voice, "answers", interrupted)
    typed(
        monkeypatch, "one", "/set max_new_tokens=none", "/sytem x", "two", "/set max_new_tokens=900", "three", "/help"
    )
    assert say("chat", left, "max_new_tokens=4") == 0
    out = capsys.readouterr().out
    assert "half an ans …\n" in out and "There is no /sytem" in out and "/reset forgets what was said" in out
    assert "max_new_tokens is 'none'. Allowed" in out and "Ctrl-C stops an answer" in out
    assert [turn["content"] for turn in seen[1]] == ["one", "half an ans", "two"]


def test_without_a_template_text_is_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each line for itself; a system prompt has no place then."""
    base = make_model(tmp_path / "plain")
    (base / "chat_template.jinja").unlink()
    root = leave_experiment(tmp_path / "x", base, [{}])
    typed(monkeypatch, "Once upon", "/system x")
    assert say("chat", root, "max_new_tokens=4") == 0
    assert "/system is a turn of a conversation" in capsys.readouterr().out
    assert say("chat", root, "--system", "x") == 1
    assert "has no chat template" in capsys.readouterr().err
    write_jsonl(Path("p.jsonl"), ROWS[:1])
    assert say("generate", root, "--prompts", "p.jsonl") == 1
    assert "Say --raw" in capsys.readouterr().err
    assert say("generate", root, "--prompts", "p.jsonl", "--raw", "--to", "a.jsonl") == 0
    assert "run_0" in json.loads(Path("a.jsonl").read_text())
