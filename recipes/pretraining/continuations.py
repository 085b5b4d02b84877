"""Continues texts with what a run has learned, beside what its base model makes of them.

python -m recipes.pretraining.continuations outputs/pretraining/<time>/runs/0/checkpoints/final "EDITOR, n."
"""

from __future__ import annotations

import argparse
from typing import Any


def main() -> None:
    """Print the continuation of every text by both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="the folder with the adapter")
    parser.add_argument("texts", nargs="+")
    given = parser.parse_args()
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(given.checkpoint)
    model = AutoPeftModelForCausalLM.from_pretrained(given.checkpoint).eval()
    for text in given.texts:
        with model.disable_adapter():
            print("before", continued(model, tokenizer, text))
        print("after ", continued(model, tokenizer, text), end="\n\n", flush=True)


def continued(model: Any, tokenizer: Any, text: str) -> str:
    """Return the text with what follows, in one line."""
    begun = tokenizer(text, return_tensors="pt").to(model.device)
    # The likeliest continuation of a small model soon repeats itself.
    written = model.generate(
        **begun, max_new_tokens=40, do_sample=False, repetition_penalty=1.2, eos_token_id=tokenizer.eos_token_id
    )
    return " ".join(tokenizer.decode(written[0], skip_special_tokens=True).split())


if __name__ == "__main__":
    main()
