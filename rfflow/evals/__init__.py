"""Evaluations, as far as they need no torch: questions, statistics, prompts, limits, what is kept of each answer."""
