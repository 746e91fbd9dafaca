"""Pipelines: load, batch, one jitted call, results."""
