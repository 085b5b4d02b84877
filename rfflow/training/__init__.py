"""From a RunSpec to a trainer that can be suspended. Heavy: imports torch, transformers, TRL and PEFT."""
