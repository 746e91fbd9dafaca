"""Attention by one fused kernel is attention by products, and is used where there is such a kernel and nowhere else."""

import functools
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mms_jax.models import attention
from mms_jax.models.attention import CUDNN_FRAMES, LARGE_SCORES, attend, attend_fused

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


def chosen(
    monkeypatch,
    *,
    backend="gpu",
    on=None,
    frames=CUDNN_FRAMES,
    width=80,
    batch=1,
    dtype=jnp.bfloat16,
    dropout=None,
    lowered_for="cuda",
):
    """Which way ``attend`` goes, by the operations it is lowered to; cuDNN's is a cube root here."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "devices", lambda: [on or device()])

    def marked(query, key, value, frame_mask, *, dtype, implementation):
        assert implementation == "cudnn"
        return jnp.cbrt(query).reshape(*query.shape[:2], -1)

    monkeypatch.setattr(attention, "attend_fused", marked)
    x = jnp.zeros((batch, frames, 1, width))
    program = jax.jit(functools.partial(attend, dtype=dtype, dropout=dropout))
    lowered = program.trace(x, x, x, jnp.ones(x.shape[:2], bool)).lower(lowering_platforms=(lowered_for,))
    operations = {"cudnn": "stablehlo.cbrt", "by head": "stablehlo.while"}
    text = lowered.as_text()
    return next((way for way, operation in operations.items() if operation in text), "products")


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
        {"lowered_for": "cpu"},  # jax.default_device(cpu) in a process that has a GPU
    ],
    ids=str,
)
def test_everything_else_goes_through_products(monkeypatch, options):
    assert chosen(monkeypatch, **options) == "products"


LARGE = math.isqrt(LARGE_SCORES // 4 // 2 - 1) + 1  # frames of two rows with one head


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_cpus_take_one_head_after_the_other_where_scores_are_large(monkeypatch, backend):
    settings = {"backend": backend, "batch": 2, "lowered_for": "cpu"}
    assert chosen(monkeypatch, frames=LARGE, **settings) == "by head"
    assert chosen(monkeypatch, frames=LARGE - 1, **settings) == "products"
    assert chosen(monkeypatch, frames=LARGE, dropout=lambda weights: weights, **settings) == "products"
    assert chosen(monkeypatch, frames=LARGE, batch=2, dtype=jnp.float32) == "products"


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_head_by_head_is_the_same_bit_by_bit_gradient_too(monkeypatch, dtype):
    *arguments, mask = inputs()

    def both(threshold):
        monkeypatch.setattr(attention, "LARGE_SCORES", threshold)

        def loss(*arguments):
            context = attend(*arguments, mask, dtype=dtype)
            return (context[mask] ** 2).sum(), context

        return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*arguments), jax.jit(
            lambda *x: attend(*x, mask, dtype=dtype)
        )(*arguments)

    for one, other in zip(*(jax.tree.leaves(both(threshold)) for threshold in (0, 10**9)), strict=True):
        np.testing.assert_array_equal(one, other)


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
