"""A recognition checkpoint in the Hugging Face layout as one of fairseq's, with an adapter for each language."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convert.conversion import Conversion, ConversionError, Part
from convert.fairseq_dictionary import DICTIONARY, RENAMED, SPECIAL
from convert.fairseq_names import FINETUNED, PRETRAINED, names
from convert.pickled import ADAPTER
from convert.renaming import Tensor, old_spelling, to_original
from convert.safe_tensors import stored
from convert.torch_files import Record
from mms_jax.checkpoint import Directory, load_feature_extractor, open_weights, read_labels, require
from mms_jax.checkpoint.tensors import read_header
from mms_jax.config import Wav2Vec2Config
from mms_jax.files import read_json

CHECKPOINT = "checkpoint.pt"
_HISTORY = {  # without which fairseq takes a checkpoint for one of before 2018
    "criterion": None,
    "optimizer_history": [
        {
            "criterion_name": "CtcCriterion",
            "optimizer_name": "FairseqAdam",
            "lr_scheduler_state": {"best": None},
            "num_updates": 0,
        }
    ],
    "last_optimizer_state": None,
    "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}},
}
_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_accurate", "relu": "relu"}


def fairseq_from_huggingface(directory: Path) -> Conversion:
    """Names, settings and dictionaries as fairseq has them; in one file.

    Raises:
        ConversionError: no recognition or pretrained model, or one whose blank is not id 0, as fairseq's is.
        CheckpointError: it is not a whole checkpoint.
    """
    source = Directory(directory)
    path = require(source, "config.json")
    config, values = Wav2Vec2Config.from_file(path), read_json(path)
    _check_config(config, path)
    tensors: dict[str, Tensor] = dict(stored(open_weights(source)))
    if not any(name.startswith("wav2vec2.") for name in tensors):  # of Wav2Vec2Model alone
        tensors = {f"wav2vec2.{name}": tensor for name, tensor in tensors.items()}
    finetuned = "lm_head.weight" in tensors or "classifier.weight" in tensors
    prefix = FINETUNED if finetuned else PRETRAINED
    state = {part.target: part for part in _originals(tensors, config, prefix, str(directory))}
    extractor = load_feature_extractor(source)
    settings = _settings(config, normalize=extractor.do_normalize, finetuned=finetuned)
    value: dict[str, Any] = {"args": None, "cfg": settings, "model": state, **_HISTORY}
    unused: dict[str, str] = {}
    if "classifier.weight" in tensors:
        value["task_state"] = {"target_dictionary": _dictionary(read_labels(values, source=str(path)))}
        settings["model"] |= {"_name": "wav2vec_classification", "pooling": "mean", "activation_fn": "linear"}
    elif finetuned:
        value |= _dictionaries(directory, config)
        adapters = [] if "adapter" in value else sorted(directory.glob("adapter.*.safetensors"))
        unused = {path.name: "an adapter, for which vocab.json has no vocabulary of its own" for path in adapters}
    else:
        settings["model"] |= _pretraining(values)
    return Conversion("wav2vec2 in the Hugging Face layout", {}, {}, {CHECKPOINT: value}, unused=unused)


def _check_config(config: Wav2Vec2Config, path: Path) -> None:
    """Raise for what fairseq has no word for, and would compute otherwise."""
    for name, only in (("feat_extract_activation", "gelu"), ("layer_norm_eps", 1e-5)):
        if getattr(config, name) != only:
            raise ConversionError(f"{path}: {name} is {getattr(config, name)!r}; in fairseq it is always {only!r}")
    if config.hidden_act not in _ACTIVATIONS:
        raise ConversionError(f"{path}: hidden_act is {config.hidden_act!r}; fairseq has {', '.join(_ACTIVATIONS)}")


def _pretraining(values: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters of the quantiser and the loss, where config.json has them."""
    names = {
        "num_codevector_groups": "latent_groups",
        "num_codevectors_per_group": "latent_vars",
        "codevector_dim": "latent_dim",
        "proj_codevector_dim": "final_dim",
        "num_negatives": "num_negatives",
        "contrastive_logits_temperature": "logit_temp",
    }
    return {"quantize_targets": True} | {there: values[name] for name, there in names.items() if name in values}


def _originals(tensors: Mapping[str, Tensor], config: Wav2Vec2Config, prefix: str, source: str) -> list[Part]:
    table = names(prefix=prefix, group_norm=config.feat_extract_norm == "group")
    return [part._replace(target=old_spelling(part.target)) for part in to_original(tensors, table, source=source)]


def _dictionaries(directory: Path, config: Wav2Vec2Config) -> dict[str, Any]:
    """The dictionary of the only language, or adapters with a dictionary each."""
    vocabulary = read_json(directory / "vocab.json", error=ConversionError)
    if not any(isinstance(tokens, Mapping) for tokens in vocabulary.values()):
        return {"task_state": {"target_dictionary": _dictionary(_symbols(vocabulary, str(directory)))}}
    adapters = {}
    for path in sorted(directory.iterdir()):
        match = ADAPTER.fullmatch(path.name)
        if match is None or match[2] != "safetensors":
            continue
        language = match[1]
        if language not in vocabulary:
            raise ConversionError(f"{path}: vocab.json has no {language!r}")
        parts = _originals(stored(read_header(path)), config, FINETUNED, str(path))
        symbols = _symbols(vocabulary[language], f"{directory}: {language}")
        adapters[language] = {
            "model": {part.target: part for part in parts},
            "task_state": {"target_dictionary": _dictionary(symbols)},
        }
    if not adapters:
        raise ConversionError(f"{directory}: vocab.json is nested by language, but there is no adapter.*.safetensors")
    chosen = read_json(directory / "tokenizer_config.json", error=ConversionError).get("target_lang")
    own = adapters.get(chosen) if isinstance(chosen, str) else None
    return {"adapter": adapters, "task_state": own["task_state"] if own else {}}


def _symbols(vocabulary: Mapping[str, Any], source: str) -> list[str]:
    """Symbols by id, with fairseq's names of the special ones."""
    by_id = sorted(vocabulary, key=lambda token: vocabulary[token])
    symbols = [RENAMED.get(token, token) for token in by_id]
    if [vocabulary[token] for token in by_id] != list(range(len(by_id))) or tuple(symbols[:4]) != SPECIAL:
        raise ConversionError(
            f"{source}: its vocabulary begins with {by_id[:4]}; fairseq's blank is id 0, so the ids of <pad>, <s>, "
            "</s> and <unk> must be 0, 1, 2 and 3, without a gap after them"
        )
    return symbols


def _dictionary(symbols: Sequence[str]) -> Record:
    """What fairseq's own class pickles to."""
    state = {
        "symbols": list(symbols),
        "count": [1] * len(symbols),
        "indices": {symbol: index for index, symbol in enumerate(symbols)},
        "bos_word": "<s>",
        "pad_word": "<pad>",
        "eos_word": "</s>",
        "unk_word": "<unk>",
        "bos_index": 0,
        "pad_index": 1,
        "eos_index": 2,
        "unk_index": 3,
        "nspecial": len(SPECIAL),
    }
    return Record(DICTIONARY, (), state)


def _settings(config: Wav2Vec2Config, *, normalize: bool, finetuned: bool) -> dict[str, Any]:
    """The hyperparameters by fairseq's names."""
    adapters: dict[str, Any] = {}
    if config.has_adapters:
        adapters = {"layer_type": "trf_adp", "adp_num": 1, "adp_dim": config.adapter_attn_dim, "adp_act_fn": "relu"}
    convs = zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True)
    rates = {
        "dropout": config.hidden_dropout,
        "attention_dropout": config.attention_dropout,
        "activation_dropout": config.activation_dropout,
        "dropout_input": config.feat_proj_dropout,
        "mask_length": config.mask_time_length,
        "mask_prob": config.mask_time_prob,
        "mask_channel_length": config.mask_feature_length,
        "mask_channel_prob": config.mask_feature_prob,
    }
    encoder = rates | {
        "_name": "wav2vec2",
        "extractor_mode": "layer_norm" if config.feat_extract_norm == "layer" else "default",
        "encoder_layers": config.num_hidden_layers,
        "encoder_embed_dim": config.hidden_size,
        "encoder_ffn_embed_dim": config.intermediate_size,
        "encoder_attention_heads": config.num_attention_heads,
        "encoder_layerdrop": config.layerdrop,
        "activation_fn": _ACTIVATIONS[config.hidden_act],
        "layer_norm_first": config.do_stable_layer_norm,
        "conv_feature_layers": str(list(convs)),
        "conv_bias": config.conv_bias,
        "conv_pos": config.num_conv_pos_embeddings,
        "conv_pos_groups": config.num_conv_pos_embedding_groups,
        **adapters,
    }
    task = {"_name": "audio_pretraining", "normalize": normalize, "sample_rate": 16_000}
    if not finetuned:
        return {"_name": None, "model": encoder, "task": task}
    head = (
        rates
        | adapters
        | {  # fairseq reads the adapters' settings here
            "_name": "wav2vec_ctc",
            "apply_mask": config.apply_spec_augment,
            "final_dropout": config.final_dropout,
            "layerdrop": config.layerdrop,
            "normalize": task["normalize"],
            "w2v_args": {"_name": None, "model": encoder, "task": task},
        }
    )
    return {"_name": None, "model": head, "task": task | {"_name": "audio_finetuning"}}
