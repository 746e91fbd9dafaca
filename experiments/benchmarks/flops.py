"""What a forward pass has to compute, from the configuration alone: floating-point operations, two for a product.

Only what a matrix product or convolution multiplies is counted, on unpadded audio. tests/test_benchmarks.py holds these
against PyTorch's own count, tests/test_training_cost.py against XLA's.
"""

from __future__ import annotations

from typing import NamedTuple

from mms_jax.config import VitsConfig, Wav2Vec2Config

RATE = 16_000


class Products(NamedTuple):
    """Multiplications for one frame of a clip."""

    before: float  # the layers
    linear: float  # of a layer, frozen
    attention: float  # of a layer: scores and values
    adapter: float  # of a layer
    head: float


def products(c: Wav2Vec2Config, *, seconds: float) -> Products:
    """Where the multiplications of a forward pass are, in clips of so many seconds."""
    width, num_frames = c.hidden_size, c.num_frames(int(seconds * RATE))
    convolutions, length = 0.0, int(seconds * RATE)
    inputs = (1, *c.conv_dim[:-1])  # channels
    for before, after, kernel, stride in zip(inputs, c.conv_dim, c.conv_kernel, c.conv_stride, strict=True):
        length = (length - kernel) // stride + 1
        convolutions += length / num_frames * kernel * before * after
    positions = width * width / c.num_conv_pos_embedding_groups * c.num_conv_pos_embeddings
    return Products(
        before=convolutions + c.conv_dim[-1] * width + positions,
        linear=4 * width**2 + 2 * width * c.intermediate_size,
        attention=2 * num_frames * width,
        adapter=2 * width * (c.adapter_attn_dim or 0),
        head=width * c.vocab_size,
    )


def forward_gflops(c: Wav2Vec2Config, *, seconds: float) -> float:
    """Of a forward pass for one second of a clip of so many: 107 for MMS-1B at 10 s, 110 at 15 s."""
    p = products(c, seconds=seconds)
    one = p.before + c.num_hidden_layers * (p.linear + p.attention + p.adapter) + p.head
    return 2e-9 * one * c.num_frames(int(seconds * RATE)) / seconds


def step_gflops(c: Wav2Vec2Config, *, seconds: float) -> float:
    """The same of a training step that computes nothing twice: 221 for MMS-1B at 15 s.

    What stands before the first layer's adapter needs no gradient, and frozen matrices none of their own.
    """
    p = products(c, seconds=seconds)
    layers = (c.num_hidden_layers - 1) * (p.linear + 2 * p.attention) + 2 * c.num_hidden_layers * p.adapter
    backward = 2e-9 * (layers + 2 * p.head) * c.num_frames(int(seconds * RATE)) / seconds
    return forward_gflops(c, seconds=seconds) + backward


def speech_gflops(c: VitsConfig, *, num_symbols: int, num_frames: int) -> float:
    """Of the synthesis of one text, blanks counted as symbols: 39.5 for a second of an MMS voice, 15 symbols in it."""
    symbols = num_symbols * (_text_encoder(c, num_symbols=num_symbols) + _duration_predictor(c))
    return 2e-9 * (symbols + num_frames * (_flow(c) + decoder_products(c)))


def _text_encoder(c: VitsConfig, *, num_symbols: int) -> float:
    width = c.hidden_size
    attention = 2 * num_symbols * width + 2 * (2 * num_symbols - 1) * width  # the latter with relative positions
    layer = 4 * width**2 + 2 * c.ffn_kernel_size * width * c.ffn_dim + attention
    return c.num_hidden_layers * layer + 2 * width * c.flow_size


def _duration_predictor(c: VitsConfig) -> float:
    """Of the stochastic kind: one flow of ``duration_predictor_num_flows`` is for training alone."""
    width = c.hidden_size
    separable = c.depth_separable_num_layers * (width**2 + c.duration_predictor_kernel_size * width)
    flow = width + separable + width * (3 * c.duration_predictor_flow_bins - 1)
    return 2 * width**2 + separable + (c.duration_predictor_num_flows - 1) * flow


def _flow(c: VitsConfig) -> float:
    width, half, layers = c.hidden_size, c.flow_size // 2, c.prior_encoder_num_wavenet_layers
    wavenet = layers * c.wavenet_kernel_size * width * 2 * width + (layers - 1) * 2 * width**2 + width**2
    return c.prior_encoder_num_flows * (2 * half * width + wavenet)


def decoder_products(c: VitsConfig) -> float:
    """Multiplications of the decoder for one frame."""
    total, rate, channels = 7.0 * c.flow_size * c.upsample_initial_channel, 1, c.upsample_initial_channel
    blocks = sum(
        kernel * 2 * len(dilations)
        for kernel, dilations in zip(c.resblock_kernel_sizes, c.resblock_dilation_sizes, strict=True)
    )
    for factor, kernel in zip(c.upsample_rates, c.upsample_kernel_sizes, strict=True):
        total += rate * kernel * channels * channels // 2
        rate, channels = rate * factor, channels // 2
        total += rate * blocks * channels**2
    return total + rate * 7 * channels
