"""Reward functions and models, loaded and tried before training."""
