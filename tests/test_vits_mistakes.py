"""The parity of VITS notices mistakes: in the rules that read a checkpoint, and in the model."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import pytest

import mms_jax.checkpoint.vits as checkpoint_io
from mms_jax.checkpoint.vits import VitsCheckpoint
from mms_jax.checkpoint.vits_rules import vits_table
from mms_jax.models import layers
from mms_jax.models.trees import flatten, unflatten
from mms_jax.models.vits import decoder, duration_predictor, flow, text_encoder, wavenet
from mms_jax.models.vits import model as vits
from tests.parity import exceeding
from tests.vits_parity import DETERMINISTIC, NOTICED, STRICT, Case, Reference, load, parity_errors, run_jax, speak

SMALL = STRICT | {
    "num_hidden_layers": 1,
    "depth_separable_num_layers": 1,
    "resblock_dilation_sizes": [[2]],  # an even one is computed the plain way, which compiles faster
}
CASES = {
    "stochastic": Case(SMALL, (12, 5), speaker=1),
    "deterministic": Case(SMALL | DETERMINISTIC, (12, 5), speaker=1),
}


@functools.cache
def reference(name: str) -> Reference:
    return speak(CASES[name])


def swap_names(first: str, second: str):
    """Exchange two groups of tensors in the rule table."""

    def table(config):
        def swapped(rule):
            old, new = (first, second) if first in rule.torch else (second, first)
            return rule._replace(torch=rule.torch.replace(old, new))

        original = vits_table(config)
        return original._replace(rules=tuple(map(swapped, original.rules)))

    return lambda patch: patch.setattr(checkpoint_io, "vits_table", table)


def change_tensor(path: str, change):
    """Change one tensor after it was read."""

    def load_changed(*args, **kwargs):
        flat = flatten(to_jax(*args, **kwargs))
        return unflatten(flat | {path: change(flat[path])})

    to_jax = checkpoint_io.to_jax
    return lambda patch: patch.setattr(checkpoint_io, "to_jax", load_changed)


def taps_reversed(path: str):
    return change_tensor(f"{path}/kernel", lambda kernel: kernel[::-1])


def transposed(path: str):
    return change_tensor(f"{path}/kernel", lambda kernel: kernel.T)


def replace(module: Any, name: str, make):
    """Put ``make(original)`` in the place of a function or class that ``module`` uses."""
    return lambda patch: patch.setattr(module, name, make(getattr(module, name)))


def call_with(change):
    """Make a submodule's class one that changes its arguments first: ``change(self, x, *rest)`` gives all of them."""

    def make(original):
        class Mistaken(original):
            def __call__(self, *args, **kwargs):
                args, kwargs = change(args, kwargs)
                return super().__call__(*args, **kwargs)

        return Mistaken

    return make


def reverse_channels(args, kwargs):
    return (args[0][..., ::-1], *args[1:]), kwargs


def no_speaker(args, kwargs):
    return (*args[:2], None, *args[3:]), kwargs


def forward(args, kwargs):
    return args, kwargs | {"reverse": False}


def with_all_splines(original):
    """The stochastic predictor without the omission of its first spline."""

    class Complete(original):
        def __call__(self, hidden, mask, noise, speaker=None):
            condition, z = self._condition(hidden, mask, speaker), noise
            for one in reversed(self.flows):
                z, _ = one(z[..., ::-1], mask, condition, reverse=True)
            return z[..., 0]

    return Complete


def gates_swapped(original):
    """The gates' convolutions with the halves for tanh and sigmoid exchanged."""

    class Swapped(original):
        def __call__(self, x):
            y = super().__call__(x)
            return jnp.roll(y, y.shape[-1] // 2, axis=-1) if self.name.startswith("in_") else y

    return Swapped


def scaled(widths: float, derivatives: float):
    """The spline with its parameters multiplied."""

    def make(spline):
        return lambda x, w, h, d, **options: spline(x, w * widths, h * widths, d * derivatives, **options)

    return replace(duration_predictor, "rational_quadratic_spline", make)


def rounded(log_durations, mask, speaking_rate):
    return jnp.where(mask, jnp.round(jnp.exp(log_durations) / speaking_rate), 0.0)


def one_frame_late(draw):
    def late(*args):
        z, frame_mask = draw(*args)
        return jnp.where(frame_mask[..., None], jnp.roll(z, 1, axis=1), 0.0), frame_mask

    return late


def as_variances(draw):
    return lambda prior, *rest: draw(prior._replace(log_variances=prior.log_variances / 2), *rest)


def epsilon(module: Any, eps: float):
    """Give all layer norms of a part another epsilon."""
    return replace(module, "LayerNorm", lambda _: lambda *, name, **__: layers.Norm(axis=-1, eps=eps, name=name))


IN_READING = {
    "query and key swapped": ("stochastic", swap_names("q_proj", "k_proj")),
    "value and output swapped": ("stochastic", swap_names("attention.v_proj", "attention.out_proj")),
    "a layer's norms swapped": ("stochastic", swap_names("layers.0.layer_norm.", "layers.0.final_layer_norm.")),
    "two couplings swapped": ("stochastic", swap_names("flow.flows.0.", "flow.flows.1.")),
    "two splines swapped": ("stochastic", swap_names("duration_predictor.flows.1.", "duration_predictor.flows.2.")),
    "posterior and prior of the durations swapped": (
        "stochastic",
        swap_names("duration_predictor.post_flows", "duration_predictor.flows"),
    ),
    "attention's output not transposed": ("stochastic", transposed("text_encoder/layers_0/attention/out")),
    "a convolution of one tap not transposed": ("stochastic", transposed("duration_predictor/conv_proj")),
    "taps of an upsampler reversed": ("stochastic", taps_reversed("decoder/upsampler_0")),
    "taps of a residual block reversed": ("stochastic", taps_reversed("decoder/resblocks_0/convs1_0")),
    "taps of a depthwise convolution reversed": (
        "stochastic",
        taps_reversed("duration_predictor/conv_dds/convs_dilated_0"),
    ),
    "taps of the last convolution reversed": ("stochastic", taps_reversed("decoder/conv_post")),
    "gains of a WaveNet reversed": (
        "stochastic",
        change_tensor("flow/flows_1/wavenet/in_1/kernel_g", lambda gain: gain[..., ::-1]),
    ),
    "relative positions mirrored": (
        "stochastic",
        change_tensor("text_encoder/layers_0/attention/emb_rel_v", lambda table: table[:, ::-1]),
    ),
}
IN_COMPUTING = {
    "embeddings not scaled": (
        "stochastic",
        replace(text_encoder, "math", lambda _: SimpleNamespace(sqrt=lambda _: 1.0)),
    ),
    "relative positions of keys left out": (
        "stochastic",
        replace(text_encoder.RelativeAttention, "_by_offset", lambda _: lambda self, scores: 0.0),
    ),
    "padded symbols attended to": ("stochastic", replace(text_encoder, "MASKED_SCORE", lambda _: 0.0)),
    "even kernels padded before": (
        "stochastic",
        replace(text_encoder, "same_padding", lambda pad: lambda width: pad(width)[::-1]),
    ),
    "torch's epsilon in the text encoder": ("stochastic", epsilon(text_encoder, 1e-5)),
    "config's epsilon in the stochastic predictor": ("stochastic", epsilon(duration_predictor, 3e-2)),
    "torch's epsilon in the deterministic predictor": ("deterministic", epsilon(duration_predictor, 1e-5)),
    "all splines used": ("stochastic", replace(vits, "StochasticDurationPredictor", with_all_splines)),
    "variables not swapped between splines": (
        "stochastic",
        replace(duration_predictor, "ConvFlow", call_with(reverse_channels)),
    ),
    "splines forward": ("stochastic", replace(duration_predictor, "ConvFlow", call_with(forward))),
    "last affine map forward": ("stochastic", replace(duration_predictor, "ElementwiseAffine", call_with(forward))),
    "bins not scaled": ("stochastic", scaled(4.0, 1.0)),  # by sqrt(hidden_size)
    "derivatives scaled as well": ("stochastic", scaled(1.0, 0.25)),
    "durations rounded": ("stochastic", replace(vits, "frame_counts", lambda _: rounded)),
    "everything one frame late": ("stochastic", replace(vits, "draw", one_frame_late)),
    "noise scaled by a standard deviation": ("stochastic", replace(vits, "draw", as_variances)),
    "channels not reversed between couplings": (
        "stochastic",
        replace(flow, "ResidualCoupling", call_with(reverse_channels)),
    ),
    "couplings forward": ("stochastic", replace(flow, "ResidualCoupling", call_with(forward))),
    "couplings in forward order": ("stochastic", lambda patch: patch.setattr(flow, "reversed", list, raising=False)),
    "gates swapped": ("stochastic", replace(wavenet, "NormalizedConv", gates_swapped)),
    "WaveNets without the speaker": ("stochastic", replace(flow, "WaveNet", call_with(no_speaker))),
    "decoder without the speaker": ("stochastic", replace(vits, "Decoder", call_with(no_speaker))),
    "durations without the speaker": (
        "deterministic",
        replace(vits, "DurationPredictor", lambda original: call_with(lambda a, k: ((*a[:3], None), k))(original)),
    ),
    "last leaky ReLU like the others": ("stochastic", replace(decoder, "LAST_SLOPE", lambda _: 0.1)),
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Mapping[str, VitsCheckpoint]:
    """The cases, read without a mistake."""
    return {name: load(reference(name).model, tmp_path_factory.mktemp(name)) for name in CASES}


def errors_of(checkpoint: VitsCheckpoint, expected: Reference, *, fresh: bool) -> dict[str, float]:
    config, params = checkpoint
    options = {"num_frames": int(expected.batch.num_frames.max()), "fresh": fresh}
    ours = run_jax(config, params, expected.text, expected.noise, **expected.arguments, **options)
    return parity_errors(ours, expected)


@pytest.mark.parametrize("name", CASES)
def test_without_a_mistake_there_is_parity(name, checkpoints):
    assert exceeding(errors_of(checkpoints[name], reference(name), fresh=False), 1.0) == {}


@pytest.mark.parametrize("mistake", IN_READING)
def test_a_mistake_in_the_rules_breaks_parity(mistake, tmp_path, monkeypatch):
    name, mutate = IN_READING[mistake]
    mutate(monkeypatch)
    checkpoint = load(reference(name).model, tmp_path)
    assert max(errors_of(checkpoint, reference(name), fresh=False).values()) > NOTICED


@pytest.mark.parametrize("mistake", IN_COMPUTING)
def test_a_mistake_in_the_model_breaks_parity(mistake, checkpoints, monkeypatch):
    name, mutate = IN_COMPUTING[mistake]
    mutate(monkeypatch)
    assert max(errors_of(checkpoints[name], reference(name), fresh=True).values()) > NOTICED
