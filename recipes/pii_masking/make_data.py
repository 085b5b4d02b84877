"""Makes train.jsonl and eval.jsonl beside it, the same ones every time. The recipe itself does not need this script.

    pip install --no-deps presidio-evaluator==0.3.2 faker==40.54.0
    python -m recipes.pii_masking.make_data

The sentences are people's: messages to a bank from the templates of presidio-evaluator (MIT), with holes where personal
data stood. Nothing in the holes is real: names, addresses and IBANs are Faker's, e-mail addresses end in domains that
are reserved for examples, phone numbers have 555-01 in the middle, and card numbers begin with 4000 00, which is for
testing. A row is one sentence or two. No sentence of eval.jsonl is in train.jsonl.
"""

from __future__ import annotations

import importlib.util
import json
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from faker import Faker  # type: ignore[import-not-found,unused-ignore]

TEMPLATES = "data_generator/raw_data/templates.txt"
ROWS = {"train": 360, "eval": 48}


def main() -> None:
    """Write both files."""
    random.seed(0)
    fills = fillers(Faker("en_US"), Faker("en_GB"))
    sentences = [line for line in bank_messages() if set(holes(line)) <= set(fills)]
    held_out = sentences[::4]
    for name, templates in (("train", [line for line in sentences if line not in held_out]), ("eval", held_out)):
        rows = [fill(random.sample(templates, random.choice((1, 1, 2))), fills) for _ in range(ROWS[name])]
        lines = dict.fromkeys(json.dumps(row) for row in rows)  # a sentence without holes comes up more than once
        Path(__file__).with_name(f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines))
        print(f"{name}.jsonl: {len(lines)} rows of {len(templates)} sentences")


def bank_messages() -> list[str]:
    """Return the templates that customers of a bank might write: those at the file's beginning."""
    found = importlib.util.find_spec("presidio_evaluator")
    assert found is not None and found.submodule_search_locations, "pip install --no-deps presidio-evaluator"
    text = Path(found.submodule_search_locations[0], TEMPLATES).read_text(encoding="utf-8", errors="ignore")
    lines = [" ".join(line.split()) for line in text.splitlines()[:83]]
    return [line for line in lines if len(line) < 120 and (holes(line) or line.endswith("?"))]


def holes(template: str) -> list[str]:
    """Return the names in double braces."""
    return re.findall(r"\{\{(\w+)\}\}", template)


def fillers(american: Faker, british: Faker) -> dict[str, tuple[str, Callable[[], str]]]:
    """Return for each name of a hole what masks it, and what fills it. A title is nothing to mask."""
    american.seed_instance(0)
    british.seed_instance(0)
    names = {
        "NAME": ("person", "name_male", "name_female"),
        "FIRST": ("first_name",),
        "LAST": ("last_name",),
    }
    makers = {"NAME": american.name_nonbinary, "FIRST": american.first_name, "LAST": american.last_name}
    fills = {hole: ("NAME", makers[kind]) for kind, found in names.items() for hole in found}
    phones = ("(%##) 555-01##", "%##-555-01##", "+1 %## 555 01##")
    return {
        **fills,
        "email": ("EMAIL", american.ascii_safe_email),
        "phone_number": ("PHONE", lambda: american.numerify(american.random_element(phones))),
        "address": ("ADDRESS", lambda: f"{american.street_address()}, {american.city()}"),
        "credit_card_number": ("CARD", lambda: american.numerify("4000 00## #### ####")),
        "iban": ("IBAN", british.iban),
        "prefix_male": ("", lambda: "Mr."),
        "prefix_female": ("", lambda: american.random_element(("Ms.", "Mrs."))),
    }


def fill(templates: Sequence[str], fills: dict[str, tuple[str, Callable[[], str]]]) -> dict[str, object]:
    """Return the text, the same masked, and what was to be masked."""
    text = masked = " ".join(line if line[-1] in ".?!" else f"{line}." for line in templates)
    entities = []
    for hole in holes(text):
        mask, make = fills[hole]
        value = make()
        text = text.replace("{{" + hole + "}}", value, 1)
        masked = masked.replace("{{" + hole + "}}", f"[{mask}]" if mask else value, 1)
        if mask:
            entities.append(value)
    return {"text": text, "masked": masked, "entities": entities}


if __name__ == "__main__":
    main()
