"""The classifier's logits equal transformers' on the same checkpoint, both ways, and mistakes are noticed."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from mms_jax.checkpoint import (
    classifier_shapes,
    engine,
    load_classifier,
    open_source,
    param_shapes,
    save_classifier,
)
from mms_jax.checkpoint.tensors import TensorInfo
from mms_jax.checkpoint.wav2vec2_rules import classifier_table
from mms_jax.config import Wav2Vec2Config
from mms_jax.models import Wav2Vec2ForSequenceClassification, heads
from mms_jax.models.layers import gelu
from mms_jax.models.trees import flatten, unflatten
from tests.parity import (
    BASE,
    MMS_CONVS,
    SHORT_CONVS,
    exceeding,
    quick,
    randomize,
    relative_error,
    run_torch,
    small_config,
    valid_frames,
    waveforms,
)

# float32 resolves 6e-8; sums of up to 400 terms in another order, layer after layer, cost some 20 of these steps: the
# largest error measured here is 1.2e-6.
PARITY = 2e-5
# What a mistake must cost to count as noticed. The smallest below costs 0.18.
NOTICED = 10 * PARITY

CONFIGS: dict[str, dict[str, Any]] = {
    "mms": {"conv_dim": (16,) * 7, "num_conv_pos_embeddings": 16, "classifier_proj_size": 20} | MMS_CONVS,
    "with adapters": {"adapter_attn_dim": 5},  # no published classifier has them
    "base": BASE | {"conv_dim": (16,) * 7, "hidden_size": 32, "num_attention_heads": 4} | MMS_CONVS,
    "group-norm features, pre-norm encoder": {"feat_extract_norm": "group", "conv_bias": False},
    "layer-norm features, post-norm encoder, odd sizes": {
        "do_stable_layer_norm": False,
        "hidden_size": 21,
        "num_attention_heads": 7,
        "intermediate_size": 13,
        "conv_dim": (5, 3, 1),
        "num_conv_pos_embeddings": 9,
        "num_conv_pos_embedding_groups": 3,
        "classifier_proj_size": 1,
    },
    "many labels, large epsilon": {"num_labels": 126, "layer_norm_eps": 1e-2},
    "one label, square projector": {"num_labels": 1, "classifier_proj_size": 24},
}
AS_FOR_USERS = {"many labels, large epsilon"}  # compiled with all optimisations
LABELS = ("eng", "fra", "deu", "cmn", "azj")


@contextmanager
def compiling_quickly() -> Iterator[None]:
    """Pipelines compile the same graphs in a quarter of the time; below, one is compared as users compile it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "jit", functools.partial(jax.jit, compiler_options=quick()))
        yield


def label_names(count: int) -> tuple[str, ...]:
    """So many different labels, languages first."""
    return (*LABELS, *(f"{i:03}" for i in range(count)))[:count]


def lid_model(*, labels: tuple[str, ...] | None = None, seed: int = 0, **changes: Any):
    """A classifier of which every element of every parameter was drawn, none left as initialised."""
    labels = label_names(changes.pop("num_labels", len(LABELS))) if labels is None else labels
    named = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    config = small_config(**{"adapter_attn_dim": None, "classifier_proj_size": 13} | named | changes)
    model: Any = transformers.Wav2Vec2ForSequenceClassification(config).eval()
    initial = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    randomize(model, seed=seed)
    for name, parameter in model.named_parameters():
        assert (parameter != initial[name]).all(), f"{name} keeps initial values"
    return model


def save_lid(directory: Path, **changes: Any) -> Path:
    """A whole checkpoint directory as transformers writes it, with the strides of MMS."""
    values: dict[str, Any] = {"conv_dim": (12,) * 7} | MMS_CONVS | changes
    model = lid_model(**values)
    model.save_pretrained(directory)
    transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(directory)
    return directory


# Three convolutions and one layer are traced and compiled faster than seven and two.
SHORT: dict[str, Any] = SHORT_CONVS | {"conv_dim": (9, 11, 7), "num_hidden_layers": 1}


def batch(config) -> tuple[np.ndarray, np.ndarray]:
    """Three rows: whole, about half, and the fewest samples that give a frame."""
    first = 400 if len(config.conv_dim) == 7 else 10
    longest = first + 27 * config.inputs_to_logits_ratio + 3
    return waveforms([longest, longest * 5 // 9, first])


@functools.cache
def reference(name: str):
    """A model and what transformers computes with it: (model, samples, mask, output)."""
    model = lid_model(seed=len(name), **CONFIGS[name])
    samples, mask = batch(model.config)
    return model, samples, mask, run_torch(model, samples, mask)


def run(checkpoint, samples, mask=None, *, scan_layers=False, optimize=False):
    """Our output with hidden states, traced anew."""
    module = Wav2Vec2ForSequenceClassification(checkpoint.config, len(checkpoint.labels), jnp.float32, scan_layers)
    options = None if optimize else quick()
    forward = jax.jit(functools.partial(module.apply, output_hidden_states=True), compiler_options=options)
    return forward({"params": checkpoint.params}, samples, mask)


@pytest.mark.parametrize(
    ("name", "scan_layers"), [*((name, False) for name in CONFIGS), ("with adapters", True), ("base", True)]
)
def test_logits_and_hidden_states_equal_those_of_transformers(name, scan_layers, tmp_path):
    model, samples, mask, expected = reference(name)
    model.save_pretrained(tmp_path)
    checkpoint = load_classifier(open_source(tmp_path), stack_layers=scan_layers)
    assert checkpoint.labels == tuple(model.config.id2label.values())
    ours = run(checkpoint, samples, mask, scan_layers=scan_layers, optimize=name in AS_FOR_USERS)
    valid = valid_frames(model, mask)
    errors = {
        f"hidden_states[{i}]": relative_error(mine, theirs, where=valid)
        for i, (mine, theirs) in enumerate(zip(ours.hidden_states, expected.hidden_states, strict=True))
    }
    assert exceeding(errors | {"logits": relative_error(ours.logits, expected.logits)}, PARITY) == {}


def test_parity_holds_without_a_mask_where_padding_counts_as_audio(tmp_path):
    model, samples, _, masked = reference("layer-norm features, post-norm encoder, odd sizes")
    model.save_pretrained(tmp_path)
    ours = run(load_classifier(open_source(tmp_path)), samples).logits
    assert relative_error(ours, run_torch(model, samples).logits) <= PARITY
    assert relative_error(ours, masked.logits) > NOTICED  # so the mask is not without effect


def test_what_lies_in_padded_frames_changes_nothing_be_it_nan(tmp_path):
    model, samples, mask, _ = reference("with adapters")
    model.save_pretrained(tmp_path)
    checkpoint = load_classifier(open_source(tmp_path))
    poisoned = np.where(mask, samples, np.float32(np.nan))
    assert np.isnan(poisoned[1:]).any()
    np.testing.assert_array_equal(run(checkpoint, poisoned, mask).logits, run(checkpoint, samples, mask).logits)


@pytest.mark.parametrize("name", ["mms", "base", "with adapters"])
def test_what_is_saved_here_is_the_same_model_to_transformers(name, tmp_path):
    model, samples, mask, expected = reference(name)
    model.save_pretrained(tmp_path / "theirs")
    config, labels, params = load_classifier(open_source(tmp_path / "theirs"))
    save_classifier(tmp_path / "ours", config=config, labels=labels, params=params)
    loaded: Any = transformers.Wav2Vec2ForSequenceClassification.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    again, info = loaded
    assert not any(info.values())
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key]), key
    assert again.config.id2label == model.config.id2label
    assert again.config.label2id == model.config.label2id
    assert relative_error(run_torch(again.eval(), samples, mask).logits, expected.logits) == 0
    saved = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert saved["architectures"] == ["Wav2Vec2ForSequenceClassification"]


# The mistakes


def with_dense(change):
    """Replace what the head's linear layers give: ``change(name, output)``."""
    dense = heads.Dense

    def make(*args, name, **kwargs):
        layer = dense(*args, name=name, **kwargs)
        return lambda x: change(name, layer(x))

    return lambda patch: patch.setattr(heads, "Dense", make)


def with_encoder(change):
    """Replace what the encoder gives to the head."""
    encoder = heads.Wav2Vec2Model

    def make(*args, **kwargs):
        layer = encoder(*args, **kwargs)
        return lambda *inputs, **options: change(layer(*inputs, **options))

    return lambda patch: patch.setattr(heads, "Wav2Vec2Model", make)


def divide_by_all_frames(patch):
    names = {name: getattr(jnp, name) for name in ("where", "float32")}
    patch.setattr(heads, "jnp", SimpleNamespace(**names, maximum=lambda count, least: count.max()))


def one_frame_more(patch):
    count = Wav2Vec2Config.num_frames
    patch.setattr(Wav2Vec2Config, "num_frames", lambda self, num_samples: count(self, num_samples) + 1)


def change_tensor(path, change):
    """Change one tensor after it was read."""

    def apply(checkpoint):
        flat = flatten(checkpoint.params)
        return checkpoint._replace(params=unflatten(flat | {path: change(flat[path])}))

    return apply


IN_COMPUTING = {
    "gelu after the projector": with_dense(lambda name, x: gelu(x) if name == "projector" else x),
    "tanh after the projector": with_dense(lambda name, x: jnp.tanh(x) if name == "projector" else x),
    "gelu after the mean": with_dense(lambda name, x: gelu(x) if name == "classifier" else x),
    "mean over padding": with_encoder(lambda out: out._replace(frame_mask=jnp.ones_like(out.frame_mask))),
    "sum divided by all frames": divide_by_all_frames,
    "one frame too many valid": one_frame_more,
    "last layer without the encoder's norm": with_encoder(
        lambda out: out._replace(last_hidden_state=out.hidden_states[-1])
    ),
}
IN_READING = {
    "a square projector not transposed": change_tensor("projector/kernel", lambda kernel: kernel.T),
    "biases lost": change_tensor("projector/bias", jnp.zeros_like),
    "labels in another order": change_tensor("classifier/kernel", lambda kernel: kernel[:, ::-1]),
}


@pytest.mark.parametrize("mutation", IN_COMPUTING | IN_READING)
def test_a_mistake_in_the_head_breaks_parity(mutation, tmp_path, monkeypatch):
    model = lid_model(seed=3, layer_norm_eps=1e-2, classifier_proj_size=24, num_hidden_layers=1)
    samples, mask = batch(model.config)
    expected = run_torch(model, samples, mask).logits
    model.save_pretrained(tmp_path)
    checkpoint = load_classifier(open_source(tmp_path))
    if mutation in IN_COMPUTING:
        IN_COMPUTING[mutation](monkeypatch)
    else:
        checkpoint = IN_READING[mutation](checkpoint)
    assert relative_error(run(checkpoint, samples, mask).logits, expected) > NOTICED


# The real sizes, by shapes

MMS_LID: dict[str, Any] = {
    "hidden_size": 1280,
    "num_hidden_layers": 48,
    "num_attention_heads": 16,
    "intermediate_size": 5120,
    "classifier_proj_size": 1024,
    "conv_bias": True,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
}
ENCODER_PARAMETERS = 962_497_408  # of mms-1b, counted from its configuration


def headers(model: torch.nn.Module) -> dict[str, TensorInfo]:
    """The tensors of a model as a file's header would list them."""
    state = model.state_dict().items()
    return {name: TensorInfo(Path("model.safetensors"), "F32", tuple(t.shape), 0, 0) for name, t in state}


@pytest.mark.parametrize("num_labels", [126, 256, 512, 1024, 2048, 4017])
def test_every_tensor_of_the_published_sizes_has_its_place(num_labels):
    values: dict[str, Any] = MMS_LID | {"num_labels": num_labels}
    theirs = transformers.Wav2Vec2Config(**values)
    with torch.device("meta"):
        tensors = headers(transformers.Wav2Vec2ForSequenceClassification(theirs))
    config = Wav2Vec2Config.from_dict(json.loads(theirs.to_json_string()))
    shapes = classifier_shapes(config, num_labels)
    bindings = engine.bind(classifier_table(config), tensors, shapes, source="mms-lid")
    assert {binding.rule.jax for binding in bindings} == shapes.keys()
    head = 1280 * 1024 + 1024 + 1024 * num_labels + num_labels
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == ENCODER_PARAMETERS + head
    encoder = {path for path in param_shapes(config) if path.startswith("wav2vec2/")}
    assert shapes.keys() - encoder == {"projector/kernel", "projector/bias", "classifier/kernel", "classifier/bias"}


def test_the_published_model_computes_a_row_of_logits_for_each_recording():
    module = Wav2Vec2ForSequenceClassification(Wav2Vec2Config(**MMS_LID), 4017, scan_layers=True)
    samples, mask = jax.ShapeDtypeStruct((3, 16_000), jnp.float32), jax.ShapeDtypeStruct((3, 16_000), bool)
    output, _ = jax.eval_shape(module.init_with_output, jax.random.key(0), samples, mask)
    assert (output.logits.shape, output.logits.dtype) == ((3, 4017), jnp.float32)
    assert output.last_hidden_state.shape == (3, 49, 1280)
