"""Gangs: runs on one base model that go forward and backward through it in one pass."""
