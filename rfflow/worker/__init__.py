"""From a RunSpec to a trainer that can be suspended. Heavy: imports torch, transformers, TRL and PEFT."""

import logging

# At its import it says which kernel for a CPU it could not fetch: one that packs weights, which is none of ours.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
