"""Flax modules: the maths and nothing else."""
