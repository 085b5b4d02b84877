"""From Python: a sweep that returns its table, and apps that build their trainers themselves."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

import rfflow

pytestmark = pytest.mark.usefixtures("hydra_restore_singletons")


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_sweep_returns_its_table(tiny_model: Path, tiny_data: Path) -> None:
    """The rows of runs.csv, and every run's history and model; opened again, and once more in the same process."""
    words = ["recipe=sft", "dataset=local", f"dataset.path={tiny_data}", "model=hub", f"model.name={tiny_model}"]
    words += ["trainer.args.max_steps=4", "chunks=2", "dataset.max_samples=24", "control.enabled=false"]
    words += ["callbacks.table=null", "engine.accelerator=cpu"]
    table = rfflow.sweep(*words, "lr=1e-3,1e-2")
    assert list(table["overrides"]) == ["lr=0.001", "lr=0.01"] and list(table["state"]) == ["completed"] * 2
    assert (table["eval_loss"] > 0).all()
    history = table["metrics"][1]
    assert list(history["step"]) == [0, 1, 2, 3, 4]
    assert history["loss"].iloc[1:].notna().all() and history["eval_loss"].iloc[-1] == table["eval_loss"][1]
    assert (Path(table.attrs["dir"]) / "runs.csv").is_file()
    assert not GlobalHydra.instance().is_initialized()
    again = rfflow.open(table.attrs["dir"])
    assert again.best["overrides"] == table.best["overrides"] == "lr=0.01"
    assert again[again["run"] == 0].best["run"] == 0  # a part of the table is one too
    curves = again.curves("eval_loss")
    assert list(curves.columns) == [0, 1] and curves.loc[4, 1] == table["eval_loss"][1]
    assert set(again.curves()["run"]) == {0, 1}
    with pytest.raises(rfflow.ConfigError, match=r"No run has logged 'eval_los'. Did you mean 'eval_loss'"):
        again.curves("eval_los")
    with pytest.raises(rfflow.ConfigError, match=r"has no run 7. Runs: 0, 1"):
        again.load(7)
    _check_loaded(again, tiny_model)
    with pytest.raises(rfflow.ConfigError, match=r"trainer.args.warmup_step is not an argument"):
        rfflow.sweep(*words, "trainer.args.warmup_step=1,2")


def _check_loaded(table: Any, base: Path) -> None:
    """What is loaded is what PEFT alone loads, and two of them share nothing."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    final = Path(table.attrs["dir"]) / "runs/1/checkpoints/final"
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(final))
    best, other = table.load(accelerator="cpu"), table.load(0, accelerator="cpu")
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        assert torch.equal(best(ids).logits, plain.eval()(ids).logits)
        other.merge_and_unload()
        assert torch.equal(best(ids).logits, plain(ids).logits)
    assert table.tokenizer(1)("a").input_ids


def build_trainer(cfg: DictConfig) -> Any:
    """Write a script as people do, up to its last line."""
    from datasets import load_dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    if cfg.lr == 7:
        raise RuntimeError("the user's bug")
    return SFTTrainer(
        model=cfg.model,
        args=SFTConfig(
            output_dir="unused",
            learning_rate=cfg.lr,
            num_train_epochs=1,
            max_length=64,
            per_device_train_batch_size=4,
            report_to="none",
            save_strategy="no",
            logging_steps=1,
            use_cpu=True,
            bf16=False,
        ),
        train_dataset=load_dataset("json", data_files=cfg.data, split="train[:24]"),
        peft_config=LoraConfig(r=4, lora_dropout=0.1, target_modules=["q_proj"]),
    )


def main(cfg: DictConfig) -> Any:
    """The app's function."""
    return rfflow.run(build_trainer, cfg)


@pytest.fixture
def app(tmp_path: Path, tiny_model: Path, tiny_data: Path) -> Path:
    """The folder of an app's own configuration."""
    conf = tmp_path / "conf"
    conf.mkdir()
    text = f"""
        defaults:
          - _self_
          - override hydra/launcher: rfflow
        model: {tiny_model}
        data: {tiny_data}
        lr: 1e-3
        rfflow:
          chunks: 2
          control: {{enabled: false}}
          callbacks: {{table: null}}
          engine: {{accelerator: cpu}}
        hydra:
          sweep: {{dir: out, subdir: "runs/${{hydra.job.num}}"}}
    """
    (conf / "config.yaml").write_text(textwrap.dedent(text))
    return conf


def test_an_app_of_ones_own_is_interleaved(app: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its runs share the device chunk by chunk, and end as its script alone would."""
    from accelerate.state import AcceleratorState
    from omegaconf import OmegaConf

    from rfflow.worker.training.coroutine import TrainerCoroutine
    from tests.support.plain import Outcome

    order: list[int] = []
    monkeypatch.setattr("rfflow.tracking.timeline.Timeline.on_chunk_end", lambda self, run: order.append(run.number))
    together: dict[float, Outcome] = {}
    train = TrainerCoroutine._train

    def note(self: TrainerCoroutine) -> Any:
        finished = train(self)
        together[self.trainer.args.learning_rate] = Outcome.of(self.trainer)
        return finished

    monkeypatch.setattr(TrainerCoroutine, "_train", note)
    table = rfflow.sweep("lr=1e-3,1e-2", config_dir=app, task=main)
    assert list(table["state"]) == ["completed"] * 2 and order == [0, 1, 0, 1]
    cfg = OmegaConf.merge(OmegaConf.load(app / "config.yaml"), {"lr": 1e-2})
    AcceleratorState._reset_state(reset_partial_state=True)
    trainer = build_trainer(cfg)  # type: ignore[arg-type]
    trainer.train()
    AcceleratorState._reset_state(reset_partial_state=True)
    assert not together[1e-2].differences(Outcome.of(trainer))


def test_an_app_that_cannot_build_is_refused_in_a_sentence(app: Path) -> None:
    with pytest.raises(rfflow.ConfigError, match=r"Run 1 \(lr=7\): build_trainer fails: the user's bug"):
        rfflow.sweep("lr=1e-3,7", config_dir=app, task=main)
    with pytest.raises(rfflow.ConfigError, match=r"rfflow.chunk is not a setting. Did you mean 'chunks'"):
        rfflow.sweep("+rfflow.chunk=3,4", config_dir=app, task=main)
    with pytest.raises(rfflow.ConfigError, match=r"returned int. Allowed: a transformers.Trainer"):
        rfflow.sweep(config_dir=app, task=lambda cfg: rfflow.run(lambda cfg: 3, cfg))


def test_the_example_of_an_app_trains(
    tiny_model: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """recipes/hydra_app, with the command of its page."""
    import runpy
    import shlex

    import pandas

    folder = Path(__file__).parents[2] / "recipes/hydra_app"
    words = shlex.split((folder / "README.md").read_text(encoding="utf-8").splitlines()[0])[2:]
    changes = [
        f"model={tiny_model}",
        f"data={tiny_data}",
        "batch=24",
        "rfflow.chunks=2",
        "+rfflow.engine.accelerator=cpu",
    ]
    words = [word for word in words if not word.startswith(("data=", "rank="))]
    monkeypatch.setattr(sys, "argv", ["app.py", *words, *changes])
    runpy.run_path(str(folder / "app.py"), run_name="__main__")
    (table,) = tmp_path.glob("outputs/hydra_app/*/runs.csv")
    runs = pandas.read_csv(table)
    assert list(runs["state"]) == ["completed"] * 2 and list(runs["chunk"]) == [2, 2]
    assert list(runs["objective"]) == list(runs["loss"])
