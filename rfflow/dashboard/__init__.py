"""The tab in TensorBoard: an experiment's runs, their curves and ops, in the page that people have open.

Torch-free, and it reads only the files that an experiment leaves.
"""
