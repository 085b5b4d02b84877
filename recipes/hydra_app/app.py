"""A Hydra and TRL script as people have it; its last line gives the trainer to rfflow instead of training it.

python recipes/hydra_app/app.py --multirun lr=1e-3,1e-4 rank=4,16
"""

from __future__ import annotations

from typing import Any

import hydra
from omegaconf import DictConfig

import rfflow


def build_trainer(cfg: DictConfig) -> Any:
    """Build the trainer, as the script did before."""
    from datasets import load_dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    args = SFTConfig(
        output_dir="checkpoints",
        learning_rate=cfg.lr,
        num_train_epochs=cfg.epochs,
        per_device_train_batch_size=cfg.batch,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        bf16=cfg.bf16,
    )
    return SFTTrainer(
        model=cfg.model,
        args=args,
        train_dataset=load_dataset("json", data_files=cfg.data, split="train"),
        peft_config=LoraConfig(r=cfg.rank, target_modules="all-linear", task_type="CAUSAL_LM"),
    )


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> Any:
    """Return a run. Before, this was build_trainer(cfg).train()."""
    return rfflow.run(build_trainer, cfg)


if __name__ == "__main__":
    main()
