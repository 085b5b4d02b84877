"""The same training as people write it today: ``python plain_trl.py jobs.json report.json``, one job after another.

No line of rfflow is imported here. Each job loads the model and the rows, trains, and saves the adapter, as a script
for one configuration does.
"""

import json
import sys
import time

from datasets import load_dataset
from peft import LoraConfig
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer


class Moments(TrainerCallback):
    """Notes when a quarter of the steps is done: when a first comparison could be made."""

    def __init__(self):
        self.quarter = None

    def on_step_end(self, args, state, control, **kwargs):
        if self.quarter is None and state.global_step * 4 >= state.max_steps:
            self.quarter = time.time()


def train(job):
    moments = Moments()
    trainer = SFTTrainer(
        model=job["model"],
        args=SFTConfig(output_dir=job["output"], model_init_kwargs={"dtype": "float32"}, **job["args"]),
        train_dataset=load_dataset("json", data_files=job["data"], split="train"),
        peft_config=LoraConfig(**job["peft"]),
        callbacks=[moments],
    )
    trainer.train()
    trainer.save_model(job["output"])
    return {"quarter": moments.quarter, "ended": time.time(), "cpu": time.process_time()}


if __name__ == "__main__":
    jobs, report = sys.argv[1:]
    moments = []
    with open(jobs) as file:
        for job in json.load(file):
            moments.append(train(job))
    with open(report, "w") as file:
        json.dump(moments, file)
