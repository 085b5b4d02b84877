"""Search over configurations: Hydra's sweep grammar is the space, Optuna's samplers choose, runs train together."""
