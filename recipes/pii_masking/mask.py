"""Masks texts with what a run has learned, beside what its base model makes of them.

python -m recipes.pii_masking.mask outputs/pii_masking/<time>/runs/0/checkpoints/final "I am Ann, call 555-0123."
"""

from __future__ import annotations

import argparse
from typing import Any

from recipes.pii_masking.format import request


def main() -> None:
    """Print every text, and the answers of both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="the folder with the adapter")
    parser.add_argument("texts", nargs="+")
    given = parser.parse_args()
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(given.checkpoint)
    model = AutoPeftModelForCausalLM.from_pretrained(given.checkpoint).eval()
    for text in given.texts:
        print("text  ", text)
        with model.disable_adapter():
            print("before", answer(model, tokenizer, text))
        print("after ", answer(model, tokenizer, text), end="\n\n", flush=True)


def answer(model: Any, tokenizer: Any, text: str) -> str:
    """Return the masked text, in one line."""
    asked = tokenizer.apply_chat_template(
        request(text), add_generation_prompt=True, return_tensors="pt", return_dict=True
    ).to(model.device)
    written = model.generate(**asked, max_new_tokens=96, do_sample=False, eos_token_id=tokenizer.eos_token_id)
    said = tokenizer.decode(written[0, asked["input_ids"].shape[1] :], skip_special_tokens=True)
    return " ".join(said.split())


if __name__ == "__main__":
    main()
