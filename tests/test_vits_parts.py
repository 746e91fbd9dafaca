"""The parts of VITS equal transformers' in both directions, gradients included, and padding has no influence."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from transformers.models.vits import modeling_vits as theirs

from mms_jax.checkpoint.vits import VitsCheckpoint, save_vits
from mms_jax.config import VitsConfig
from mms_jax.models.layers import fold_weight_norm
from mms_jax.models.trees import flatten
from mms_jax.models.vits import Prior, VitsModel, draw
from mms_jax.models.vits.duration_predictor import ConvFlow, ElementwiseAffine
from mms_jax.models.vits.flow import Flow
from mms_jax.models.vits.text_encoder import RelativeAttention
from tests.parity import exceeding, relative_error
from tests.vits_parity import (
    LIMITS,
    STRICT,
    Case,
    Reference,
    call,
    injected,
    load,
    run_jax,
    small_vits,
    speak,
)

# Errors relative to the largest value, in float32. A part costs some ten roundings of 6e-8.
PARITY = 1e-5
GRADIENT_PARITY = 1e-4  # as for wav2vec2: sums run over batch and time besides
IDENTITY = 1e-4  # forward and back again, values of size 1

NUM_SYMBOLS = (12, 5)
SPEAKER = 1


@pytest.fixture(scope="module")
def reference() -> Reference:
    """A model with two of everything, and a text of two rows."""
    return speak(Case(STRICT, NUM_SYMBOLS, speaker=SPEAKER))


@pytest.fixture(scope="module")
def checkpoint(reference, tmp_path_factory) -> VitsCheckpoint:
    """The model, read by us."""
    return load(reference.model, tmp_path_factory.mktemp("checkpoint"))


def channels_first(x: np.ndarray) -> torch.Tensor:
    """[B, T, C] as the reference wants it."""
    return torch.from_numpy(np.ascontiguousarray(x.swapaxes(1, 2)))


def channels_last(x: torch.Tensor) -> np.ndarray:
    return x.detach().numpy().swapaxes(1, 2)


def mask_of(num_valid: tuple[int, ...]) -> tuple[np.ndarray, torch.Tensor]:
    """The same mask for us, bool [B, T], and for the reference, float [B, 1, T]."""
    mask = np.arange(max(num_valid)) < np.array(num_valid)[:, None]
    return mask, torch.from_numpy(mask[:, None].astype(np.float32))


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


# ------------------------------------------------------------------------------------------------ durations


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("flows", ["flows", "post_flows"])
def test_a_flow_of_the_durations_equals_the_references_with_its_log_determinant(
    flows, index, reverse, reference, checkpoint
):
    config, params = checkpoint
    z, condition = 2 * normal(2, 12, 2), normal(2, 12, config.hidden_size, seed=1)
    mask, their_mask = mask_of(NUM_SYMBOLS)
    part = getattr(reference.model.duration_predictor, flows)[index]
    with torch.no_grad():
        expected, log_det = part(
            channels_first(z), their_mask, global_conditioning=channels_first(condition), reverse=reverse
        )
    module = ElementwiseAffine() if index == 0 else ConvFlow(config)
    apply = functools.partial(module.apply, reverse=reverse)
    ours, our_log_det = call(apply, {"params": params["duration_predictor"][f"{flows}_{index}"]}, z, mask, condition)
    assert relative_error(ours, channels_last(expected)) <= PARITY
    if not reverse:  # the reference has none there
        assert relative_error(our_log_det, log_det) <= PARITY
        back = functools.partial(module.apply, reverse=True)
        tree = {"params": params["duration_predictor"][f"{flows}_{index}"]}
        again, back_log_det = call(back, tree, ours, mask, condition)
        assert np.abs(again - z)[mask].max() <= IDENTITY
        assert np.abs(our_log_det + back_log_det).max() <= IDENTITY * 12  # a sum over symbols


def duration_batch() -> tuple[np.ndarray, np.ndarray]:
    """Durations in frames, one of them 0 as an alignment might have it, and noise."""
    mask, _ = mask_of(NUM_SYMBOLS)
    durations = np.random.default_rng(2).integers(1, 9, mask.shape).astype(np.float32) * mask
    durations[0, 3] = 0
    return durations, normal(*mask.shape, 2, seed=3)


def torch_duration_loss(reference: Reference, durations: np.ndarray, noise: np.ndarray) -> torch.Tensor:
    """The reference's negative log-likelihood of each row."""
    model, (mask, their_mask) = reference.model, mask_of(NUM_SYMBOLS)
    speaker = model.embed_speaker(torch.tensor([SPEAKER] * len(mask))).unsqueeze(-1)
    hidden = model.text_encoder(
        torch.from_numpy(reference.text.ids), their_mask.mT, torch.from_numpy(mask).long()
    ).last_hidden_state
    with injected(durations=noise):
        return model.duration_predictor(hidden.mT, their_mask, speaker, torch.from_numpy(durations)[:, None])


def applied(config: VitsConfig, params, *arrays: Any, method: str, **options: Any) -> Any:
    """One of the model's methods for the speaker."""
    speakers = jnp.full(len(arrays[0]), SPEAKER)
    return VitsModel(config).apply({"params": params}, *arrays, speakers, method=method, **options)


def test_the_likelihood_of_durations_and_its_gradients_equal_the_references(reference, checkpoint, tmp_path):
    config, params = checkpoint
    durations, noise = duration_batch()
    mask, _ = mask_of(NUM_SYMBOLS)

    def loss(params, *arrays):
        losses = applied(config, params, *arrays, method="duration_loss")
        return losses.sum(), losses

    gradients, ours = call(jax.grad(loss, has_aux=True), params, reference.text.ids, mask, durations, noise)
    expected = torch_duration_loss(reference, durations, noise)
    assert relative_error(ours, expected.detach()) <= PARITY
    check_gradients(expected.sum(), gradients, reference.model, config, tmp_path, trained=("duration_predictor.",))


def check_gradients(loss, gradients, model, config: VitsConfig, directory, *, trained: tuple[str, ...]) -> None:
    """Assert that all gradients are the reference's, and nothing but those of the parts that are trained by it."""
    model.zero_grad()
    loss.backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert expected.keys() == {name for name, _ in model.named_parameters() if name.startswith(trained)}
    save_vits(directory, config=config, params=gradients)
    ours = load_file(directory / "model.safetensors")
    assert not any(ours[name].any() for name in ours.keys() - expected.keys())
    assert exceeding({name: relative_error(ours[name], expected[name]) for name in expected}, GRADIENT_PARITY) == {}
    assert all(gradient.abs().max() > 1e-4 for gradient in expected.values())  # none is rounding noise only


# ------------------------------------------------------------------------------------------------ flow and posterior

NUM_FRAMES = (19, 8)


def speaker_of(params) -> jax.Array:
    return params["embed_speaker"][jnp.full(len(NUM_FRAMES), SPEAKER)]


def test_the_flow_equals_the_references_both_ways_and_one_undoes_the_other(reference, checkpoint):
    config, params = checkpoint
    mask, their_mask = mask_of(NUM_FRAMES)
    x, speaker = normal(2, 19, config.flow_size), speaker_of(params)
    their_speaker = torch.from_numpy(np.array(speaker)).unsqueeze(-1)
    ways = [functools.partial(Flow(config).apply, reverse=reverse) for reverse in (False, True)]
    for way, back in (ways, ways[::-1]):
        with torch.no_grad():
            expected = reference.model.flow(channels_first(x), their_mask, their_speaker, reverse=way is ways[1])
        ours = call(way, {"params": params["flow"]}, x, mask, speaker)
        assert relative_error(ours, channels_last(expected), where=mask) <= PARITY
        assert np.abs(ours - x)[mask].max() > 0.1
        again = call(back, {"params": params["flow"]}, ours, mask, speaker)
        assert np.abs(again - x)[mask].max() <= IDENTITY


def test_posterior_and_flow_and_their_gradients_equal_the_references(reference, checkpoint, tmp_path):
    config, params = checkpoint
    model, (mask, their_mask) = reference.model, mask_of(NUM_FRAMES)
    spectrogram, noise = np.abs(normal(2, 19, config.spectrogram_bins)), normal(2, 19, config.flow_size, seed=1)
    weights = [normal(2, 19, config.flow_size, seed=2 + i) * mask[..., None] for i in range(3)]

    def loss(params, *arrays):
        posterior = applied(config, params, *arrays, method="encode_posterior")
        latents = applied(config, params, posterior.latents, arrays[1], method="to_prior")
        outputs = (latents, posterior.means, posterior.log_stddevs)
        return sum((weight * output).sum() for weight, output in zip(weights, outputs, strict=True)), outputs

    gradients, ours = call(jax.grad(loss, has_aux=True), params, spectrogram, mask, noise)
    speaker = model.embed_speaker(torch.tensor([SPEAKER] * 2)).unsqueeze(-1)
    with injected(frames=noise):
        sampled, *statistics = model.posterior_encoder(channels_first(spectrogram), their_mask, speaker)
    expected = (model.flow(sampled, their_mask, speaker), *statistics)
    for actual, wanted in zip(ours, expected, strict=True):
        assert relative_error(actual, channels_last(wanted), where=mask) <= PARITY
    total = sum((channels_first(weight) * output).sum() for weight, output in zip(weights, expected, strict=True))
    trained = ("posterior_encoder.", "flow.", "embed_speaker.")
    check_gradients(total, gradients, model, config, tmp_path, trained=trained)


def test_a_folded_weight_norm_gives_the_same_flow(checkpoint):
    config, params = checkpoint
    folded = fold_weight_norm(params)
    assert not [path for path in flatten(folded) if path.endswith(("kernel_v", "kernel_g"))]
    x, (mask, _) = normal(2, 19, config.flow_size), mask_of(NUM_FRAMES)
    trees = ({"params": tree["flow"]} for tree in (params, folded))
    whole, quicker = (call(Flow(config).apply, tree, x, mask, speaker_of(params)) for tree in trees)
    assert relative_error(quicker, whole) <= PARITY


# ------------------------------------------------------------------------------------------------ text and padding


@pytest.mark.parametrize("num_symbols", [1, 2, 4, 5, 6, 13])
@pytest.mark.parametrize("window", [1, 3, 4, 5])
def test_relative_attention_equals_the_references_for_texts_within_the_window_and_beyond(window, num_symbols):
    config = small_vits(window_size=window)
    torch.manual_seed(window)
    attention = theirs.VitsAttention(config).eval()
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.normal_(0, 1 if parameter.ndim == 3 else 0.3)
    x = normal(2, num_symbols, config.hidden_size)
    mask = np.arange(num_symbols) < np.array([[num_symbols], [max(1, num_symbols - 2)]])
    blocked = torch.from_numpy(np.where(mask, 0, np.finfo(np.float32).min).astype(np.float32))
    with torch.no_grad():
        expected, _ = attention(
            torch.from_numpy(x), attention_mask=blocked[:, None, None].expand(2, 1, num_symbols, num_symbols)
        )
    params: dict[str, Any] = {
        name: {"kernel": linear.weight.detach().numpy().T, "bias": linear.bias.detach().numpy()}
        for name, linear in {part: getattr(attention, f"{part}_proj") for part in ("q", "k", "v", "out")}.items()
    }
    params |= {name: getattr(attention, name).detach().numpy() for name in ("emb_rel_k", "emb_rel_v")}
    module = RelativeAttention(VitsConfig.from_dict(config.to_dict()))
    ours = call(module.apply, {"params": params}, x, mask)
    assert relative_error(ours, expected, where=mask) <= PARITY


def encode(checkpoint: VitsCheckpoint, *arrays: np.ndarray) -> Prior:
    return call(functools.partial(applied, checkpoint.config, method="encode"), checkpoint.params, *arrays)


def test_a_text_has_the_same_prior_and_durations_alone_as_in_a_batch(reference, checkpoint):
    text, noise = reference.text, reference.noise.durations
    together = encode(checkpoint, text.ids, text.mask, noise)
    for i, num_symbols in enumerate(NUM_SYMBOLS):
        row = text.row(i)
        alone = encode(checkpoint, row.ids, row.mask, noise[i : i + 1, :num_symbols])
        for name, limit in (("means", PARITY), ("log_variances", PARITY), ("log_durations", LIMITS["log_durations"])):
            batched, single = (np.asarray(getattr(prior, name)) for prior in (together, alone))
            assert np.abs(batched[i, :num_symbols] - single[0]).max() <= limit, name


GARBAGE = 1e6


def test_what_stands_in_the_padding_changes_no_bit_of_a_synthesis(reference, checkpoint):
    config, params = checkpoint
    text, noise, num_frames = reference.text, reference.noise, int(reference.batch.num_frames.max())
    ids = np.where(text.mask, text.ids, (text.ids + 1) % config.vocab_size)
    durations = np.where(text.mask[..., None], noise.durations, GARBAGE)
    frames = np.arange(noise.prior.shape[1]) < reference.batch.num_frames[:, None]
    prior = np.where(frames[..., None], noise.prior, GARBAGE)
    clean, spoiled = (
        run_jax(config, params, text._replace(ids=some_ids), noise._replace(durations=some, prior=others),
                num_frames=num_frames + 3, speaker_id=SPEAKER)
        for some_ids, some, others in ((text.ids, noise.durations, noise.prior), (ids, durations, prior))
    )  # fmt: skip
    for one, other in zip(jax.tree.leaves(clean), jax.tree.leaves(spoiled), strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_stands_in_the_padding_changes_no_bit_of_what_training_computes(reference, checkpoint):
    config, params = checkpoint
    (symbols, _), (frames, _) = mask_of(NUM_SYMBOLS), mask_of(NUM_FRAMES)
    durations, noise = duration_batch()
    spectrogram, frame_noise = normal(2, 19, config.spectrogram_bins), normal(2, 19, config.flow_size)

    def compute(params, ids, noise, spectrogram, frame_noise, latents):
        module = functools.partial(applied, config, params)
        symbol_mask, frame_mask = jnp.asarray(symbols), jnp.asarray(frames)
        loss = module(ids, symbol_mask, jnp.asarray(durations), noise, method="duration_loss")
        posterior = module(spectrogram, frame_mask, frame_noise, method="encode_posterior")
        ways = [module(latents, frame_mask, method=method) for method in ("to_prior", "from_prior")]
        return loss, posterior, [jnp.where(frame_mask[..., None], way, 0.0) for way in ways]

    arrays = (reference.text.ids, noise, spectrogram, frame_noise, frame_noise)
    masks = (symbols, symbols[..., None], *[frames[..., None]] * 3)
    garbage = (0, GARBAGE, GARBAGE, -GARBAGE, GARBAGE)
    spoiled = [np.where(mask, array, bad) for array, mask, bad in zip(arrays, masks, garbage, strict=True)]
    results = (call(compute, params, *some) for some in (arrays, spoiled))
    for one, other in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_array_equal(one, other)


@given(
    durations=st.lists(st.lists(st.integers(0, 4), min_size=6, max_size=6), min_size=2, max_size=2),
    spread=st.sampled_from([0.0, 0.5]),
)
def test_every_symbol_fills_as_many_frames_as_it_lasts_in_order_and_the_rest_is_masked(durations, spread):
    num_frames = 15  # so that some texts are cut off
    means, log_variances, noise = normal(2, 6, 3), spread * normal(2, 6, 3, seed=1), normal(2, num_frames, 3, seed=2)
    prior = Prior(jnp.asarray(means), jnp.asarray(log_variances), jnp.zeros((2, 6)))
    z, frame_mask = draw(prior, jnp.asarray(durations, jnp.float32), jnp.asarray(noise))
    for i, row in enumerate(durations):
        symbols = np.repeat(np.arange(6), row)[:num_frames]
        assert np.asarray(frame_mask[i]).tolist() == [t < len(symbols) for t in range(num_frames)]
        expected = means[i, symbols] + noise[i, : len(symbols)] * np.exp(log_variances[i, symbols])
        np.testing.assert_allclose(z[i, : len(symbols)], expected, rtol=1e-6, atol=1e-6)
        assert not np.asarray(z)[i, len(symbols) :].any()


def test_dropout_acts_where_random_numbers_for_it_are_given_and_nowhere_else(reference, checkpoint):
    config = checkpoint.config.replace(wavenet_dropout=0.4)  # the others' rates are not 0 by default
    latents, (mask, _) = normal(2, 19, config.flow_size), mask_of(NUM_FRAMES)

    def compute(key, params, ids, symbols, noise, latents, mask):
        module = functools.partial(applied, config, params, rngs=None if key is None else {"dropout": key})
        return module(ids, symbols, noise, method="encode"), module(latents, mask, method="to_prior")

    text = reference.text
    arrays = (checkpoint.params, text.ids, text.mask, reference.noise.durations, latents, mask)
    still, first, again = (
        jax.tree.leaves(call(compute, key, *arrays)) for key in (None, jax.random.key(1), jax.random.key(1))
    )
    for one, other, repeated in zip(still, first, again, strict=True):
        np.testing.assert_array_equal(other, repeated)
        assert np.abs(one - other).max() > 0.01
