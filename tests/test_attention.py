"""Attention by one fused kernel is attention by products, and is used where there is such a kernel and nowhere else."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mms_jax.models import attention
from mms_jax.models.attention import CUDNN_FRAMES, attend, attend_fused

# float32 on both sides: the order of summation over 80 channels and 37 frames.
PARITY = 2e-6
KERNELS = ("__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward")


def inputs(num_frames=37, *, lengths=(37, 20, 1)):
    source = np.random.default_rng(0)
    shape = len(lengths), num_frames, 4, 80
    query, key, value = (jnp.asarray(source.normal(size=shape), jnp.float32) for _ in range(3))
    return query * 80**-0.5, key, value, jnp.arange(num_frames) < jnp.array(lengths)[:, None]


def test_the_fused_call_means_the_same():
    arguments = inputs()
    products = attend(*arguments, dtype=jnp.float32)
    fused = attend_fused(*arguments, dtype=jnp.float32, implementation="xla")
    valid = arguments[-1]
    np.testing.assert_allclose(fused[valid], products[valid], atol=PARITY)


def test_the_fused_call_has_the_same_gradient():
    *arguments, mask = inputs()

    def loss(call, *arguments):
        return (call(*arguments, mask, dtype=jnp.float32)[mask] ** 2).sum()

    fused = functools.partial(attend_fused, implementation="xla")
    gradients = [jax.grad(functools.partial(loss, call), (0, 1, 2))(*arguments) for call in (attend, fused)]
    for ours, theirs in zip(*gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=PARITY * float(np.abs(theirs).max()))


def device(version="PJRT C API\ncuda 13000", capability="9.0"):
    return types.SimpleNamespace(
        client=types.SimpleNamespace(platform_version=version), compute_capability=capability, platform="gpu"
    )


def chosen(monkeypatch, *, backend="gpu", on=None, frames=CUDNN_FRAMES, width=80, dtype=jnp.bfloat16, dropout=None):
    """Which of both ways ``attend`` goes."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "devices", lambda: [on or device()])
    ways = []
    fused = functools.partial(attend_fused, implementation="xla")
    monkeypatch.setattr(
        attention, "attend_fused", lambda *x, implementation, **other: ways.append(implementation) or fused(*x, **other)
    )
    x = jnp.zeros((1, frames, 1, width))
    attend(x, x, x, jnp.ones((1, frames), bool), dtype=dtype, dropout=dropout)
    return ways[0] if ways else "products"


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.int8])
def test_long_rows_of_16_bits_on_nvidia_are_fused(monkeypatch, dtype):
    assert chosen(monkeypatch, dtype=dtype) == "cudnn"


@pytest.mark.parametrize(
    "options",
    [
        {"backend": "cpu"},
        {"backend": "tpu"},
        {"on": device(version="rocm 60000")},
        {"on": device(capability="7.5")},
        {"frames": CUDNN_FRAMES - 1},
        {"width": 12},
        {"width": 136},
        {"dtype": jnp.float32},
        {"dropout": lambda weights: weights},
    ],
    ids=str,
)
def test_everything_else_goes_through_products(monkeypatch, options):
    assert chosen(monkeypatch, **options) == "products"


@pytest.mark.parametrize("gradient", [False, True])
def test_it_is_cudnns_kernel_with_the_lengths_of_rows(monkeypatch, gradient):
    """Lowered for CUDA, which needs no GPU: what is checked is that jax accepts the call and that no score is left."""
    from jax._src.cudnn import fused_attention_stablehlo

    versions = types.SimpleNamespace(cudnn_get_version=lambda: 91500)
    monkeypatch.setattr(fused_attention_stablehlo, "cuda_versions", versions)

    def call(*arguments):
        return attend_fused(*arguments, dtype=jnp.bfloat16, implementation="cudnn")

    function = jax.grad(lambda *arguments: call(*arguments).sum(), (0, 1, 2)) if gradient else call
    allowed = [jax.export.DisabledSafetyCheck.custom_call(name) for name in KERNELS]
    arguments = inputs(600, lengths=(600, 7))
    text = jax.export.export(jax.jit(function), platforms=["cuda"], disabled_checks=allowed)(*arguments).mlir_module()
    assert [name for name in KERNELS if f"@{name}(" in text] == list(KERNELS if gradient else KERNELS[:1])
    assert "600x600" not in text
    assert "tensor<2xi32>" in text
