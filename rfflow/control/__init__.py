"""Changing an experiment while it runs: ops, the directory they are dropped in, the journal of what came of them.

Torch-free: everything here can be imported by a command line that must answer at once.
"""
