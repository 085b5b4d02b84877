"""Runs, their chunks and places, and the experiment they belong to."""
