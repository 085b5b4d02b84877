"""The loop that trains the runs of an experiment, and what ops, clones and signals do to it."""
