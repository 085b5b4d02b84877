"""The same training as people write it today: ``python plain_trl.py jobs.json report.json``, one job after another.

No line of rfflow is imported here. Each job loads the model and the rows, trains, and saves the adapter, as a script
for one configuration does.
"""

import json
import sys
import time

import trl
from datasets import load_dataset
from peft import LoraConfig
from transformers import TrainerCallback


class Moments(TrainerCallback):
    """Notes when the first step begins, and when a quarter of them is done: a first comparison could be made."""

    def __init__(self):
        self.quarter = self.began = None

    def on_train_begin(self, args, state, control, **kwargs):
        self.began = time.time()

    def on_step_end(self, args, state, control, **kwargs):
        if self.quarter is None and state.global_step * 4 >= state.max_steps:
            self.quarter = time.time()


def train(job):
    moments, kind, more = Moments(), job.get("kind", "SFT"), {}
    if kind == "GRPO":
        from rewards import length

        more = {"reward_funcs": [length]}
    trainer = getattr(trl, f"{kind}Trainer")(
        model=job["model"],
        args=getattr(trl, f"{kind}Config")(
            output_dir=job["output"], model_init_kwargs={"dtype": "float32"}, **job["args"]
        ),
        train_dataset=load_dataset("json", data_files=job["data"], split="train"),
        peft_config=LoraConfig(**job["peft"]),
        callbacks=[moments],
        **more,
    )
    trainer.train()
    trainer.save_model(job["output"])
    return {"began": moments.began, "quarter": moments.quarter, "ended": time.time(), "cpu": time.process_time()}


if __name__ == "__main__":
    jobs, report = sys.argv[1:]
    moments = []
    with open(jobs) as file:
        for job in json.load(file):
            moments.append(train(job))
    with open(report, "w") as file:
        json.dump(moments, file)
