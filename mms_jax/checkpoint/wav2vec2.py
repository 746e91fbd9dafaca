"""wav2vec2 checkpoints in the Hugging Face layout, with a CTC head, a classifier or none, and adapter files."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mms_jax.checkpoint import processor
from mms_jax.checkpoint.engine import Binding, bind, to_jax, to_torch
from mms_jax.checkpoint.hub import Source, require
from mms_jax.checkpoint.rules import Table
from mms_jax.checkpoint.tensors import read_header, write_tensors
from mms_jax.checkpoint.wav2vec2_rules import HINTS, OPTIONAL, classifier_table, ctc_rules, encoder_table
from mms_jax.checkpoint.weights import bind_weights, open_weights, save_model
from mms_jax.config import Wav2Vec2Config
from mms_jax.errors import CheckpointError, ConfigError, LanguageError
from mms_jax.files import read_json
from mms_jax.models import Wav2Vec2ForCTC, Wav2Vec2ForSequenceClassification, Wav2Vec2Model
from mms_jax.models.trees import Params, flatten, is_adapter_path

_PICKLE = "a pickle, which this library never opens; `python -m convert` makes safetensors of it"
_LANGUAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")

# What a config.json's "architectures" are loaded with, for errors.
_LOADERS = {
    "Wav2Vec2ForCTC": "a recognition (CTC) model: use load_asr",
    "Wav2Vec2ForSequenceClassification": "a classifier: use load_lid",
    "Wav2Vec2ForPreTraining": "a pretrained encoder: use load_encoder",
    "Wav2Vec2Model": "an encoder without a head: use load_encoder",
}


class Checkpoint(NamedTuple):
    """A model read from disk."""

    config: Wav2Vec2Config
    params: Params


class ClassifierCheckpoint(NamedTuple):
    """A classifier read from disk."""

    config: Wav2Vec2Config
    labels: tuple[str, ...]  # by id
    params: Params


def adapter_filename(language: str) -> str:
    """The file that holds one language's adapter and head.

    Raises:
        LanguageError: not a language tag: it must not choose a place outside the checkpoint.
    """
    if not _LANGUAGE.fullmatch(language):
        raise LanguageError(f"{language!r} is not a language tag (letters, digits, - and _: 'fra', 'azj-script_latin')")
    return f"adapter.{language}.safetensors"


def load_ctc(source: Source, *, dtype: Any = jnp.float32, stack_layers: bool = False) -> Checkpoint:
    """Read config.json and the weights of a ``Wav2Vec2ForCTC`` checkpoint.

    Args:
        source: from ``open_source``.
        dtype: of matrices in memory (float32, bfloat16, float16); converted while reading.
        stack_layers: give the layers a leading axis, for modules with ``scan_layers=True``.

    Raises:
        CheckpointError: wrong or incomplete; the message names the file and the tensor. ConfigError: config.json.
    """
    config = Wav2Vec2Config.from_file(require(source, "config.json"))
    return Checkpoint(config, _read(bind_ctc(source, config), config, dtype, stack_layers))


def bind_ctc(source: Source, config: Wav2Vec2Config) -> list[Binding]:
    """The tensors of a ``Wav2Vec2ForCTC`` checkpoint by our paths.

    Raises:
        CheckpointError: wrong or incomplete; the message names the file and the tensor.
    """
    return bind_weights(source, _ctc_table(config), param_shapes(config))


def _read(bindings: list[Binding], config: Wav2Vec2Config, dtype: Any, stack_layers: bool) -> Params:
    return to_jax(bindings, dtype=dtype, stack_layers=config.num_hidden_layers if stack_layers else None)


def load_classifier(source: Source, *, dtype: Any = jnp.float32, stack_layers: bool = False) -> ClassifierCheckpoint:
    """Read config.json and the weights of a ``Wav2Vec2ForSequenceClassification`` checkpoint; otherwise ``load_ctc``.

    Raises:
        CheckpointError: wrong or incomplete; the message names the file and the tensor. ConfigError: config.json, its
            labels included.
    """
    config = Wav2Vec2Config.from_file(require(source, "config.json"))
    labels, bindings = bind_classifier(source, config)
    return ClassifierCheckpoint(config, labels, _read(bindings, config, dtype, stack_layers))


def bind_classifier(source: Source, config: Wav2Vec2Config) -> tuple[tuple[str, ...], list[Binding]]:
    """A classifier's labels by id, and its tensors by our paths.

    Raises:
        CheckpointError: wrong or incomplete; the message names the file and the tensor. ConfigError: the labels.
    """
    path = require(source, "config.json")
    labels = read_labels(read_json(path), source=str(path))
    return labels, bind_weights(source, classifier_table(config), classifier_shapes(config, len(labels)))


def read_labels(values: Mapping[str, Any], *, source: str) -> tuple[str, ...]:
    """A classifier's labels by id, from the ``id2label`` of a parsed config.json.

    Raises:
        ConfigError: there is none, its ids are not 0 … n - 1, a label is no text or occurs twice, or ``label2id`` or
            ``num_labels`` contradict it; the message names ``source`` and the fault.
    """
    named = values.get("id2label")
    if not isinstance(named, Mapping) or not named:
        hint = _loaded_with(values, but="Wav2Vec2ForSequenceClassification")
        raise ConfigError(f'{source}: no id2label, an object such as {{"0": "eng"}}, so no names for labels{hint}')
    ids = {str(index): index for index in range(len(named))}
    missing, extra = [id_ for id_ in ids if id_ not in named], sorted(named.keys() - ids.keys())
    if missing:
        found = f"no {missing[0]!r} but {extra[0]!r}"
        raise ConfigError(f"{source}: id2label has {found}; its {len(ids)} ids must be 0 … {len(ids) - 1}")
    labels: dict[str, int] = {}
    for id_, index in ids.items():
        label = named[id_]
        if not isinstance(label, str) or not label.strip():
            raise ConfigError(f"{source}: id2label names {id_} {label!r}, which is no text")
        if labels.setdefault(label, index) != index:
            raise ConfigError(f"{source}: id2label names both {labels[label]} and {id_} {label!r}")
    _check_label_ids(values, labels, source)
    return tuple(labels)


def _check_label_ids(values: Mapping[str, Any], labels: Mapping[str, int], source: str) -> None:
    expected = {label: str(index) for label, index in labels.items()}
    stated = values.get("label2id")
    # Some training scripts write the ids as text.
    stated = {label: str(index) for label, index in stated.items()} if isinstance(stated, Mapping) else stated
    if stated is not None and stated != expected:
        differing = stated.items() ^ expected.items() if isinstance(stated, Mapping) else expected.items()
        label = min(label for label, _ in differing)
        raise ConfigError(f"{source}: label2id and id2label disagree about {label!r}")
    num_labels = values.get("num_labels")
    if num_labels is not None and num_labels != len(labels):
        raise ConfigError(f"{source}: num_labels is {num_labels!r}, but id2label has {len(labels)}")


def _loaded_with(values: Mapping[str, Any], *, but: str) -> str:
    """The end of a message: which loader a config.json is for, where its architecture is known and not ``but``."""
    architectures = values.get("architectures")
    names = architectures if isinstance(architectures, list) else []
    meant = [_LOADERS[name] for name in names if isinstance(name, str) and name in _LOADERS and name != but]
    return f". It is {meant[0]}" if meant else ""


def load_processor(source: Source) -> processor.Processor:
    """``processor.load_processor``, which says what a checkpoint is for where it lacks a vocabulary by its nature."""
    config = source.find("config.json") if source.find("vocab.json") is None else None
    hint = "" if config is None else _loaded_with(read_json(config), but="Wav2Vec2ForCTC")
    if hint:
        raise CheckpointError(f"{source.name}: no vocab.json there{hint}")
    return processor.load_processor(source)


def load_wav2vec2(source: Source, *, dtype: Any = jnp.float32, stack_layers: bool = False) -> Checkpoint:
    """Read config.json and the encoder of any wav2vec2 checkpoint: pretraining, CTC, classifier, or nothing else.

    What only heads need stays unread (``UNUSED``); adapters are part of the encoder. Otherwise ``load_ctc``.
    """
    config = Wav2Vec2Config.from_file(require(source, "config.json"))
    return Checkpoint(config, _read(bind_encoder(source, config), config, dtype, stack_layers))


def bind_encoder(source: Source, config: Wav2Vec2Config) -> list[Binding]:
    """The tensors of any wav2vec2 checkpoint's encoder, adapters included, by our paths in ``Wav2Vec2Model``.

    Raises:
        CheckpointError: wrong or incomplete; the message names the file and the tensor.
    """
    bare = not any(name.startswith("wav2vec2.") for name in open_weights(source))
    return bind_weights(source, encoder_table(config, bare=bare), encoder_shapes(config))


@functools.lru_cache(maxsize=16)
def _shapes(model: type[nn.Module], config: Wav2Vec2Config, *sizes: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
    module = model(config, *sizes, scan_layers=True)  # tracing one layer instead of all
    samples = jax.ShapeDtypeStruct((1, config.min_samples), jnp.float32)
    shapes: dict[str, tuple[int, ...]] = {}
    for path, leaf in flatten(jax.eval_shape(module.init, jax.random.key(0), samples)["params"]).items():
        head, scanned, tail = path.partition("/layers/")
        if scanned:
            shapes |= {f"{head}/layers_{i}/{tail}": leaf.shape[1:] for i in range(leaf.shape[0])}
        else:
            shapes[path] = leaf.shape
    return tuple(shapes.items())


def param_shapes(config: Wav2Vec2Config) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of ``Wav2Vec2ForCTC(config)``, by path, without computing anything.

    ``masked_spec_embed`` is left out where the config does without it.
    """
    return dict(_shapes(Wav2Vec2ForCTC, config))


def classifier_shapes(config: Wav2Vec2Config, num_labels: int) -> dict[str, tuple[int, ...]]:
    """``param_shapes`` of ``Wav2Vec2ForSequenceClassification(config, num_labels)``."""
    return dict(_shapes(Wav2Vec2ForSequenceClassification, config, num_labels))


def encoder_shapes(config: Wav2Vec2Config) -> dict[str, tuple[int, ...]]:
    """``param_shapes`` of ``Wav2Vec2Model(config)``."""
    return dict(_shapes(Wav2Vec2Model, config))


def _ctc_table(config: Wav2Vec2Config) -> Table:
    return Table(ctc_rules(config), OPTIONAL, HINTS)


def load_adapter(
    path: str | PathLike[str], config: Wav2Vec2Config, *, dtype: Any = jnp.float32, stack_layers: bool = False
) -> Params:
    """Read one language's adapter file: every layer's adapter block and the CTC head, of any vocabulary size.

    ``dtype`` and ``stack_layers`` as ``load_ctc`` has them.

    Raises:
        CheckpointError: the config has no adapters, or the file is not an adapter of this architecture.
    """
    bindings = bind_adapter(Path(path), config)
    return to_jax(bindings, dtype=dtype, stack_layers=config.num_hidden_layers if stack_layers else None)


def bind_adapter(path: Path, config: Wav2Vec2Config) -> list[Binding]:
    """The tensors of an adapter file by our paths.

    Raises:
        CheckpointError: the config has no adapters, or the file is not an adapter of this architecture.
    """
    if path.suffix == ".bin":
        raise CheckpointError(f"{path}: {_PICKLE}")
    tensors = read_header(path)
    head = tensors.get("lm_head.weight")
    vocab_size = head.shape[0] if head is not None and head.shape else config.vocab_size
    shapes = _adapter_shapes(config, vocab_size=vocab_size, what=str(path))
    rules = [rule for rule in ctc_rules(config) if rule.jax not in OPTIONAL]
    return bind(Table(rules, hints=HINTS), tensors, shapes, source=str(path))


def _adapter_shapes(config: Wav2Vec2Config, *, vocab_size: int, what: str) -> dict[str, tuple[int, ...]]:
    """The shapes of an adapter file's parameters; its vocabulary is its own."""
    if not config.has_adapters:
        raise CheckpointError(
            f"{what}: this model has no adapter layers (adapter_attn_dim is null, or it is post-norm)"
        )
    if vocab_size < 1:
        raise CheckpointError(f"{what}: lm_head has no rows, so no vocabulary")
    shapes = {name: shape for name, shape in param_shapes(config).items() if is_adapter_path(name)}
    return shapes | {"lm_head/kernel": (config.hidden_size, vocab_size), "lm_head/bias": (vocab_size,)}


def find_adapter(source: Source, language: str) -> Path:
    """The adapter file of a language in a checkpoint.

    Raises:
        LanguageError: there is none, or only a pickled one, which is not opened.
    """
    path = source.find(adapter_filename(language))
    if path is None:
        pickled = f"adapter.{language}.bin"
        remedy = f" ({pickled} is {_PICKLE})" if pickled in source.filenames() else ""
        raise LanguageError(f"{language!r} has no {adapter_filename(language)} in {source.name}{remedy}")
    return path


def save_ctc(directory: str | PathLike[str], *, config: Wav2Vec2Config, params: Mapping[str, Any]) -> None:
    """Write config.json and model.safetensors (unrolled ``params``) so that transformers loads them as they are.

    Raises:
        CheckpointError: ``params`` are not a whole tree of that config, or hold NaN. OSError: it cannot be written.
    """
    tensors = to_torch(_ctc_table(config), params, param_shapes(config))
    save_model(directory, config=config, tensors=tensors, architecture="Wav2Vec2ForCTC")


def save_classifier(
    directory: str | PathLike[str], *, config: Wav2Vec2Config, labels: Sequence[str], params: Mapping[str, Any]
) -> None:
    """Write config.json and model.safetensors of a classifier; otherwise ``save_ctc``."""
    tensors = to_torch(classifier_table(config), params, classifier_shapes(config, len(labels)))
    attributes = {
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
    }
    read_labels(attributes, source="the labels to be saved")
    architecture = "Wav2Vec2ForSequenceClassification"
    save_model(directory, config=config, tensors=tensors, architecture=architecture, attributes=attributes)


def save_adapter(
    path: str | PathLike[str],
    *,
    config: Wav2Vec2Config,
    params: Mapping[str, Any],
    metadata: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write the adapter leaves of ``params`` (a whole tree, or an adapter tree) as an adapter file.

    ``metadata`` goes into the file's header.

    Raises:
        CheckpointError: they are not the adapters of that config, or hold NaN. OSError: it cannot be written.
    """
    path = Path(path)
    adapter = {name: leaf for name, leaf in flatten(params).items() if is_adapter_path(name)}
    vocab_size = adapter["lm_head/kernel"].shape[-1] if "lm_head/kernel" in adapter else config.vocab_size
    shapes = _adapter_shapes(config, vocab_size=vocab_size, what=f"{path} not written")
    tensors = to_torch(_ctc_table(config), adapter, shapes)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, tensors, metadata=metadata)
