"""Models that runs have left, loaded again: merged, and side by side on one base."""
