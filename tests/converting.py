"""``python -m convert`` as a user runs it, and what its results are compared with."""

from __future__ import annotations

import numpy as np
import torch

from convert.__main__ import main

# The same numbers through the same model, in two libraries: the order of summation (README, Equal to PyTorch).
PARITY = 2e-5


def run(*arguments) -> int:
    return main([str(argument) for argument in arguments])


def failure(capsys, *arguments) -> str:
    assert run(*arguments) == 1
    return capsys.readouterr().err


@torch.no_grad()
def reference(model, samples) -> np.ndarray:
    """[T, V] of a waveform that is normalised here, as both sides' feature extractors do it."""
    values = torch.tensor((samples - samples.mean()) / np.sqrt(samples.var() + 1e-7))[None]
    return model(values, attention_mask=torch.ones(values.shape, dtype=torch.long)).logits[0].numpy()


def close(ours, theirs) -> None:
    assert np.abs(ours - theirs).max() <= PARITY * np.abs(theirs).max()
