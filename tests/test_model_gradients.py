"""Gradients of the CTC loss with respect to every parameter equal those of transformers' own loss."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from mms_jax.checkpoint import save_ctc
from mms_jax.config import Wav2Vec2Config
from mms_jax.ctc import ctc_loss
from mms_jax.models import CTCOutput, Wav2Vec2ForCTC
from mms_jax.models.trees import unstack_layers
from tests.parity import BASE, exceeding, load, quick, random_model, small_config, waveforms

# Largest error of a tensor's gradient relative to its largest element. Ten times what the forward pass loses (1e-6) is
# lost on the way back, where sums run over batch and time besides: up to 1.2e-5 is measured.
GRADIENT_PARITY = 1e-4
LOSS_PARITY = 1e-5

MMS = {"layer_norm_eps": 1e-3, "pad_token_id": 7, "ctc_loss_reduction": "mean"}
CASES: dict[str, tuple[dict[str, Any], bool]] = {  # changes of the small config, whether the layers are scanned
    "mms, unrolled": (MMS, False),
    "mms, scanned": (MMS, True),
    "base, unrolled": (BASE | {"num_conv_pos_embeddings": 7, "pad_token_id": 22}, False),
    "base with conv bias, scanned": (BASE | {"conv_bias": True, "ctc_loss_reduction": "mean"}, True),
}
BATCH = [10 + 29 * 12, 200, 10]  # samples that make 30, 16 and 1 frames
LABELS = [[3, 3, 9, 1, 12, 5], [4, 2, 2], [8]]  # repeats need a blank between them; row 2 has a single frame


def reference(model, samples: np.ndarray, mask: np.ndarray, masked: np.ndarray) -> tuple[float, dict[str, np.ndarray]]:
    """Transformers' loss, and its gradient with respect to every parameter by name."""
    longest = max(map(len, LABELS))
    loss = model(
        torch.from_numpy(samples),
        torch.from_numpy(mask).long(),
        labels=torch.tensor([row + [-100] * (longest - len(row)) for row in LABELS]),
        mask_time_indices=torch.from_numpy(masked),
    ).loss
    loss.backward()
    return loss.item(), {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}


def loss_of_output(config: Wav2Vec2Config, output: CTCOutput) -> jax.Array:
    """The library's loss of LABELS."""
    num_labels = np.array([len(row) for row in LABELS])
    return ctc_loss(
        output.logits,
        labels=jnp.array([row + [0] * (num_labels.max() - len(row)) for row in LABELS]),
        num_frames=output.frame_mask.sum(axis=1),
        num_labels=jnp.array(num_labels),
        blank_id=config.pad_token_id,
        reduction=config.ctc_loss_reduction,
    )


def vanishing(config: Any) -> dict[str, str]:
    """Biases without a gradient, each with the matrix whose gradient the same cotangents make.

    A key bias shifts all scores of a query alike, which a softmax ignores; a bias under a group norm is subtracted with
    its channel's mean. What is there instead is rounding noise of both sides, to be judged by the matrix's gradient.
    """
    layers = [f"wav2vec2.encoder.layers.{i}.attention.k_proj" for i in range(config.num_hidden_layers)]
    grouped = ["wav2vec2.feature_extractor.conv_layers.0.conv"] if config.feat_extract_norm == "group" else []
    return {f"{name}.bias": f"{name}.weight" for name in layers + grouped}


@pytest.mark.parametrize("name", CASES)
def test_loss_and_every_gradient_equal_those_of_transformers(name, tmp_path):
    changes, scan_layers = CASES[name]
    model = random_model(small_config(**changes), seed=1)
    samples, mask = waveforms(BATCH, seed=1)
    masked = np.random.default_rng(1).random((3, 30)) < 0.2
    expected_loss, expected = reference(model, samples, mask, masked)
    config, params = load(model, tmp_path, stack_layers=scan_layers)
    module = Wav2Vec2ForCTC(config, scan_layers=scan_layers)

    def loss_of(params, samples, mask, masked):
        output: Any = module.apply({"params": params}, samples, mask, mask_time_indices=masked)
        return loss_of_output(config, output)

    loss_and_gradients = jax.jit(jax.value_and_grad(loss_of), compiler_options=quick())
    loss, gradients = loss_and_gradients(params, samples, mask, masked)
    assert abs(loss - expected_loss) <= LOSS_PARITY * abs(expected_loss)
    gradients = unstack_layers(gradients) if scan_layers else gradients
    save_ctc(tmp_path / "gradients", config=config, params=gradients)
    ours = load_file(tmp_path / "gradients" / "model.safetensors")
    assert ours.keys() == expected.keys()
    scale = {name: np.abs(expected[vanishing(config).get(name, name)]).max() for name in expected}
    errors = {name: float(np.abs(ours[name] - expected[name]).max() / scale[name]) for name in expected}
    assert exceeding(errors, GRADIENT_PARITY) == {}


def test_gradients_called_vanishing_do_vanish_and_no_others():
    for changes, _ in CASES.values():
        model = random_model(small_config(**changes), seed=1)
        samples, mask = waveforms(BATCH, seed=1)
        _, gradients = reference(model, samples, mask, np.eye(3, 30, dtype=bool))
        largest = max(np.abs(gradient).max() for gradient in gradients.values())
        tiny = {name for name, gradient in gradients.items() if np.abs(gradient).max() < 1e-6 * largest}
        assert tiny == {name for name in vanishing(model.config) if name in gradients}
