"""Checkpoints on disk: the only place that knows PyTorch parameter names."""
