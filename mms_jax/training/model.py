"""The model a job starts from: its frozen part, and what of it is trained, a slot for each language."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from mms_jax.checkpoint import Source, find_adapter, load_adapter, load_ctc, load_wav2vec2, open_weights
from mms_jax.config import Wav2Vec2Config
from mms_jax.errors import CheckpointError, ConfigError, SettingError
from mms_jax.models.trees import Params, flatten, merge_trees, split_adapter, unflatten
from mms_jax.training.arguments import TrainingArguments
from mms_jax.training.augment import check_augmentation
from mms_jax.training.state import fresh_adapter, fresh_leaf, stack_slots

ADAPTER_WIDTH = 16  # where nothing says another: MMS's, and transformers' default
SPEC_EMBED = "wav2vec2/masked_spec_embed"
FEATURE_ENCODER = "wav2vec2/feature_extractor/"

_OPTIONAL = ("attention_dropout", "activation_dropout", "hidden_dropout", "feat_proj_dropout")
_ALWAYS = (
    "final_dropout",
    "layerdrop",
    "mask_time_prob",
    "mask_time_length",
    "mask_feature_prob",
    "mask_feature_length",
    "ctc_loss_reduction",
)


class Start(NamedTuple):
    """What training starts from."""

    base: Params  # frozen; matrices in the dtype of products where adapters are trained
    params: Params  # trained: float32, [N, …]
    columns: np.ndarray  # bool [N, V], True = a token of that slot


def training_config(config: Wav2Vec2Config, arguments: TrainingArguments) -> Wav2Vec2Config:
    """A checkpoint's config with the arguments' rates; adapters are added where they are asked for and missing.

    Raises:
        SettingError: a rate out of its range, or a checkpoint that cannot have such adapters.
    """
    a = arguments
    changes: dict[str, Any] = {name: getattr(a, name) for name in _ALWAYS}
    # As the scripts have it: the one for adapters leaves these to the checkpoint, the other sets them to 0.
    default = {} if a.target_language else dict.fromkeys(_OPTIONAL, 0.0)
    changes |= default | {name: getattr(a, name) for name in _OPTIONAL if getattr(a, name) is not None}
    if a.target_language:
        changes["adapter_attn_dim"] = _adapter_width(config, a)
    try:
        changed = config.replace(apply_spec_augment=a.mask_time_prob > 0 or a.mask_feature_prob > 0, **changes)
    except ConfigError as error:
        raise SettingError(f"--{error}") from None
    if a.target_language and not changed.has_adapters:
        raise SettingError(
            f"--target_language {a.target_language[0]}: {a.model_name_or_path} is a post-norm encoder, which has no "
            "adapters; leave --target_language out to train the whole model"
        )
    check_augmentation(
        num_channels=changed.hidden_size,
        mask_time_prob=changed.mask_time_prob,
        mask_time_length=changed.mask_time_length,
        mask_time_min_masks=changed.mask_time_min_masks,
        mask_feature_prob=changed.mask_feature_prob,
        mask_feature_length=changed.mask_feature_length,
        mask_feature_min_masks=changed.mask_feature_min_masks,
        layerdrop=changed.layerdrop,
        dither=a.dither,
    )
    return changed


def _adapter_width(config: Wav2Vec2Config, arguments: TrainingArguments) -> int:
    """Of the checkpoint's adapters, or else as the arguments have it."""
    there, asked = config.adapter_attn_dim, arguments.adapter_attn_dim
    if there is not None and asked not in (None, there):
        raise SettingError(
            f"--adapter_attn_dim is {asked}, but {arguments.model_name_or_path} has adapters of width {there}, and a "
            "checkpoint has one width for all its languages; leave the flag out"
        )
    return there or asked or ADAPTER_WIDTH


def load_adapters(
    source: Source,
    config: Wav2Vec2Config,
    sizes: Sequence[int],
    *,
    init: Sequence[str | None],
    keep_heads: Sequence[bool],
    dtype: Any,
    scan_layers: bool,
    seed: int,
) -> Start:
    """The base, frozen, and an adapter and head for each language, fresh or from one that the checkpoint has.

    Args:
        source: the checkpoint.
        config: of training.
        sizes: of the languages' vocabularies.
        init: the language whose adapter to start from; None: fresh.
        keep_heads: whether its head is of the same vocabulary, and comes along.
        dtype: of the base's matrices.
        scan_layers: whether the base's layers are stacked.
        seed: of fresh parameters.

    Raises:
        LanguageError: no adapter of a language of ``init``. CheckpointError: a file is wrong, or a head has another
            size than its vocabulary.
    """
    base, _ = split_adapter({"wav2vec2": load_wav2vec2(source, dtype=dtype, stack_layers=scan_layers).params})
    adapters = []
    for size, language, keep_head in zip(sizes, init, keep_heads, strict=True):
        adapter = fresh_adapter(config, vocab_size=size, seed=seed)
        if language is not None:
            path = find_adapter(source, language)
            there = load_adapter(path, config, stack_layers=True)
            if keep_head:
                _check_head(there, size, source=str(path))
            adapter = there if keep_head else {**there, "lm_head": adapter["lm_head"]}
        adapters.append(adapter)
    params, columns = stack_slots(adapters)
    return Start(_with_spec_embed(base, config, seed), params, columns)


def load_whole(
    source: Source, config: Wav2Vec2Config, *, keep_head: bool, freeze_features: bool, scan_layers: bool, seed: int
) -> Start:
    """All parameters trained but the convolutions, if these are frozen; the checkpoint's head, or a fresh one.

    Args:
        source: the checkpoint.
        config: of training, with the size of the vocabulary.
        keep_head: whether the checkpoint's head is of the same vocabulary.
        freeze_features: leave the convolutions as they are.
        scan_layers: whether layers are stacked.
        seed: of fresh parameters.

    Raises:
        CheckpointError: a file is wrong, or the head has another size than the vocabulary.
    """
    if keep_head:
        params = load_ctc(source, stack_layers=scan_layers).params
        _check_head(params, config.vocab_size, source=source.name)
    else:
        head = fresh_head(config, seed=seed)
        params = merge_trees({"wav2vec2": load_wav2vec2(source, stack_layers=scan_layers).params}, head)
    flat = flatten(_with_spec_embed(params, config, seed))
    frozen = {path: leaf for path, leaf in flat.items() if freeze_features and path.startswith(FEATURE_ENCODER)}
    trained = {path: jnp.asarray(leaf, jnp.float32)[None] for path, leaf in flat.items() if path not in frozen}
    return Start(unflatten(frozen), unflatten(trained), np.ones((1, config.vocab_size), bool))


def _check_head(params: Params, size: int, *, source: str) -> None:
    there = params["lm_head"]["kernel"].shape[-1]
    if there != size:
        raise CheckpointError(
            f"{source}: its head has {there} tokens, but the vocabulary {size}; they do not belong together"
        )


def fresh_head(config: Wav2Vec2Config, *, seed: int) -> Params:
    """A CTC head as transformers initialises one."""
    shapes = {"lm_head/kernel": (config.hidden_size, config.vocab_size), "lm_head/bias": (config.vocab_size,)}
    return unflatten({path: fresh_leaf(path, shape, seed) for path, shape in shapes.items()})


def has_head(source: Source) -> bool:
    """Whether a checkpoint has a CTC head."""
    return "lm_head.weight" in open_weights(source)


def _with_spec_embed(params: Params, config: Wav2Vec2Config, seed: int) -> Params:
    """Time masking writes a learnt vector; a checkpoint that never masked has none, and begins with a random one."""
    flat = flatten(params)
    if not config.has_spec_embed:
        return unflatten({path: leaf for path, leaf in flat.items() if path != SPEC_EMBED})
    if SPEC_EMBED not in flat:
        rng = np.random.default_rng(seed)
        flat[SPEC_EMBED] = rng.uniform(size=config.hidden_size).astype(np.float32)
    return unflatten(flat)
