"""fairseq's wav2vec2 checkpoints (.pt) to the Hugging Face layout: recognition with and without adapters, language
identification, pretrained encoders.

A recognition checkpoint of MMS holds one base and, under ``adapter``, an adapter, a head and a dictionary for each
language. fairseq's own inference (examples/mms) always puts one of these in the place of the base's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from convert.conversion import Conversion, ConversionError, Part, Texts
from convert.fairseq_config import Settings, config_json, feature_extractor, read_settings
from convert.fairseq_dictionary import ctc_vocabulary, labels, read_dictionary
from convert.fairseq_names import FINETUNED, PRETRAINED, names
from convert.renaming import Tensor, to_huggingface
from convert.torch_files import StoredTensor
from mms_jax.checkpoint.wav2vec2 import adapter_filename
from mms_jax.checkpoint.weights import WEIGHTS
from mms_jax.errors import LanguageError
from mms_jax.files import read_json

DEFAULT_BASE = "eng"  # the language whose adapter and head the published base weights hold
HEAD = "lm_head.weight"
_SHOWN = 12
# By which fairseq's models are known: with a CTC head, with a classifier, pretrained.
_MARKS = ("w2v_encoder.proj.weight", "pooling_layer.projection.weight", "post_extract_proj.weight")

_BOOKKEEPING = {  # what a checkpoint often holds tensors in, beside the model
    "criterion": "state of the last training's loss",
    "optimizer_history": "state of the last training",
    "last_optimizer_state": "state of the last training's optimiser",
    "extra_state": "counters of the last training",
    "ema": "averages of the last training",
    "fsdp_metadata": "how the last training was distributed",
}


class Options(NamedTuple):
    """What the user says about a checkpoint that does not say it itself."""

    languages: Sequence[str] = ()  # whose adapters are wanted, by the checkpoint's own tags; none named: all
    base_language: str | None = None  # whose adapter and head model.safetensors holds; None: eng, or else the first
    dictionary: Path | None = None  # dict.ltr.txt or dict.lang.txt, where the checkpoint has none
    config: Path | None = None  # a config.json in place of the checkpoint's settings
    drop_activation: bool = False  # of an identifier, between pooling and classifier


class Source(NamedTuple):
    """A checkpoint that was read."""

    path: Path
    checkpoint: Mapping[str, Any]
    options: Options

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Of the model."""
        return state_dict(self.checkpoint["model"], str(self.path))

    @property
    def unused(self) -> dict[str, str]:
        """What holds tensors beside the model, and why it is left out."""
        others = {str(key): value for key, value in self.checkpoint.items() if key not in ("model", "adapter")}
        for language, adapter in (self.checkpoint.get("adapter") or {}).items():
            others |= {f"adapter.{language}.{key}": value for key, value in adapter.items() if key != "model"}
        return {
            key: _BOOKKEEPING.get(key, "no part of a model that is known here")
            for key, value in others.items()
            if _holds_tensors(value)
        }


def is_fairseq(checkpoint: Any) -> bool:
    """Whether what a file held has the names of fairseq's wav2vec2."""
    model = checkpoint.get("model") if isinstance(checkpoint, Mapping) else None
    return isinstance(model, Mapping) and any(name in model for name in _MARKS)


def convert_fairseq(path: Path, checkpoint: Mapping[str, Any], options: Options) -> Conversion:
    """What a fairseq checkpoint becomes, read from ``path``.

    Raises:
        ConversionError: an architecture that transformers' wav2vec2 has not, or something is missing or contradictory.
        LanguageError: no adapter of a language that is asked for.
    """
    source, (recogniser, identifier, _) = Source(path, checkpoint, options), _MARKS
    if recogniser in checkpoint["model"]:
        return _recogniser(source)
    return _identifier(source) if identifier in checkpoint["model"] else _pretrained(source)


def state_dict(state: Any, source: str) -> dict[str, Tensor]:
    """The tensors of a state dict, which holds nothing else."""
    if not isinstance(state, Mapping):
        raise ConversionError(f"{source}: a {type(state).__name__} where tensors by name are expected")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, StoredTensor):
            raise ConversionError(f"{source}: {name!r} is no tensor but a {type(value).__name__}")
    return dict(state)


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, StoredTensor):
        return True
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return any(_holds_tensors(item) for item in items)


def _translate(tensors: Mapping[str, Tensor], prefix: str, source: str) -> list[Part]:
    group_norm = f"{prefix}feature_extractor.conv_layers.0.2.weight" in tensors
    return to_huggingface(tensors, names(prefix=prefix, group_norm=group_norm), source=source)


def _config(source: Source, parts: Sequence[Part], *, finetuned: bool) -> tuple[dict[str, Any], Settings]:
    """config.json without what belongs to a head, and the settings that it was made from."""
    path = source.options.config
    try:
        settings = read_settings(source.checkpoint, finetuned=finetuned, source=str(source.path))
    except ConversionError:
        if path is None:
            raise
        return read_json(path, error=ConversionError), Settings({}, {}, {})  # for want of which --config is there
    if path is None:
        return config_json(settings, parts, source=str(source.path)), settings
    config = read_json(path, error=ConversionError)
    heads = settings.encoder.get("encoder_attention_heads", config.get("num_attention_heads"))
    if config.get("num_attention_heads") != heads:
        raise ConversionError(f"{path}: num_attention_heads contradicts {source.path}, which says {heads}")
    return config, settings


def _feature_extractor(config: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    normalize = bool(settings.task.get("normalize", settings.model.get("normalize", True)))
    return feature_extractor(config, normalize=normalize, sampling_rate=settings.task.get("sample_rate", 16_000))


# --------------------------------------------------------------------------------------------------------- recognition


def _recogniser(source: Source) -> Conversion:
    adapters = _adapters(source)
    if adapters:
        return _with_adapters(source, adapters)
    if source.options.languages or source.options.base_language:
        raise LanguageError(f"{source.path}: holds no adapters, so there are no languages to choose from")
    parts = _translate(source.tensors, FINETUNED, str(source.path))
    dictionary = read_dictionary(
        source.checkpoint.get("task_state"), source.options.dictionary, source=str(source.path)
    )
    vocabulary = ctc_vocabulary(dictionary, size=_rows(parts, HEAD), source=str(source.path))
    texts = _recogniser_files(source, parts, vocabulary, language=None)
    return Conversion("fairseq wav2vec2 with a CTC head", {WEIGHTS: parts}, texts, unused=source.unused)


def _with_adapters(source: Source, adapters: Mapping[str, Mapping[str, Any]]) -> Conversion:
    languages = _chosen(source, adapters)
    base = source.options.base_language or (DEFAULT_BASE if DEFAULT_BASE in languages else languages[0])
    own = {name for name in source.tensors if ".adapter_layer." in name or name.startswith("w2v_encoder.proj.")}
    files, vocabularies = {}, {}
    for language in languages:
        place = f"{source.path}: adapter {language!r}"
        tensors = state_dict(adapters[language].get("model"), place)
        parts = [_under(part, language) for part in _translate(tensors, FINETUNED, place)]
        stray = next((part.target for part in parts if not _is_adapter(part.target)), None)
        if stray is not None:
            raise ConversionError(f"{place}: holds {stray}, which is the base's")
        dictionary = read_dictionary(adapters[language].get("task_state"), None, source=place)
        vocabularies[language] = ctc_vocabulary(dictionary, size=_rows(parts, HEAD), source=place)
        files[adapter_filename(language)] = parts
    rest = {name: tensor for name, tensor in source.tensors.items() if name not in own}
    whole = [*_translate(rest, FINETUNED, str(source.path)), *files[adapter_filename(base)]]
    unused = dict.fromkeys(sorted(own), "the base's own, in whose place inference always puts a language's")
    unused |= {f"adapter.{name}": "a language that was not asked for" for name in adapters if name not in languages}
    texts = _recogniser_files(source, whole, vocabularies, language=base)
    kind = f"fairseq wav2vec2 with a CTC head and {len(languages)} of {len(adapters)} adapters"
    notes = [f"{WEIGHTS} holds the adapter and head of {base}"]
    return Conversion(kind, {WEIGHTS: whole, **files}, texts, unused=source.unused | unused, notes=notes)


def _adapters(source: Source) -> Mapping[str, Mapping[str, Any]]:
    adapters = source.checkpoint.get("adapter") or {}
    if not isinstance(adapters, Mapping) or not all(
        isinstance(language, str) and isinstance(adapter, Mapping) for language, adapter in adapters.items()
    ):
        raise ConversionError(f"{source.path}: 'adapter' does not hold an adapter for each language")
    return adapters


def _chosen(source: Source, adapters: Mapping[str, Any]) -> list[str]:
    """The languages that are wanted, in the checkpoint's order, with that of the base among them."""
    wanted = set(source.options.languages or adapters)
    wanted |= {source.options.base_language} if source.options.base_language is not None else set()
    for language in sorted(wanted - adapters.keys()):
        tags = list(adapters)
        near = ", ".join(([tag for tag in tags if tag.startswith(language[:2])] or tags)[:_SHOWN])
        raise LanguageError(
            f"{source.path}: no adapter {language!r} among its {len(adapters)}; languages are taken literally"
            + (f"; near it: {near}" if near else "")
        )
    return [language for language in adapters if language in wanted]


def _under(part: Part, language: str) -> Part:
    """The same tensor, whose name in the source says what it lies under."""
    return part._replace(sources=tuple(f"adapter.{language}.{name}" for name in part.sources))


def _is_adapter(target: str) -> bool:
    return ".adapter_layer." in target or target.startswith("lm_head.")


def _rows(parts: Sequence[Part], target: str) -> int:
    return next((part.shape[0] for part in parts if part.target == target and part.shape), 0)


def _recogniser_files(
    source: Source, parts: Sequence[Part], vocabulary: Mapping[str, Any], *, language: str | None
) -> Texts:
    config, settings = _config(source, parts, finetuned=True)
    ids = {"vocab_size": _rows(parts, HEAD), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    tokens = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return {
        "config.json": config | ids | {"architectures": ["Wav2Vec2ForCTC"]},
        "vocab.json": vocabulary,
        "tokenizer_config.json": tokens
        | {
            "tokenizer_class": "Wav2Vec2CTCTokenizer",
            "word_delimiter_token": "|",
            "replace_word_delimiter_char": " ",
            "do_lower_case": False,
            "target_lang": language,
        },
        "preprocessor_config.json": _feature_extractor(config, settings),
    }


# ------------------------------------------------------------------------------------- identification and pretraining


def _identifier(source: Source) -> Conversion:
    parts = _translate(source.tensors, FINETUNED, str(source.path))
    config, settings = _config(source, parts, finetuned=True)
    pooling = settings.model.get("pooling", "mean")
    if pooling != "mean":
        raise ConversionError(f"{source.path}: pooling is {pooling!r}; transformers' classifier has only the mean")
    notes = _activation(source, settings)
    dictionary = read_dictionary(
        source.checkpoint.get("task_state"), source.options.dictionary, source=str(source.path)
    )
    named = labels(dictionary, size=_rows(parts, "classifier.weight"), source=str(source.path))
    config |= {
        "architectures": ["Wav2Vec2ForSequenceClassification"],
        "classifier_proj_size": _rows(parts, "projector.weight"),
        "id2label": {str(index): label for index, label in enumerate(named)},
        "label2id": {label: index for index, label in enumerate(named)},
    }
    texts: Texts = {"config.json": config, "preprocessor_config.json": _feature_extractor(config, settings)}
    kind = f"fairseq wav2vec2 that identifies {len(named)} languages"
    return Conversion(kind, {WEIGHTS: parts}, texts, unused=source.unused, notes=notes)


def _activation(source: Source, settings: Settings) -> list[str]:
    """What to tell of an activation between pooling and classifier, which transformers' classifier has not."""
    if not settings.model:
        return ["its settings are not there, so nobody knows of an activation between pooling and classifier"]
    activation = settings.model.get("activation_fn", "gelu")
    if activation == "linear":
        return []
    if source.options.drop_activation:
        return [f"{activation} between pooling and classifier is left out: the scores are not those of fairseq"]
    raise ConversionError(
        f"{source.path}: its settings name an activation, {activation!r}, between pooling and classifier; "
        "transformers' classifier has none, so scores would differ. --drop-activation converts all the same, as "
        "its own converter did"
    )


def _pretrained(source: Source) -> Conversion:
    parts = _translate(source.tensors, PRETRAINED, str(source.path))
    config, settings = _config(source, parts, finetuned=False)
    shapes = {part.target: part.shape for part in parts}
    if len(shapes.get("quantizer.codevectors", ())) == 3:
        groups = settings.encoder.get("latent_groups", 2)
        _, entries, width = shapes["quantizer.codevectors"]
        config |= {
            "num_codevector_groups": groups,
            "num_codevectors_per_group": entries // max(1, groups),
            "codevector_dim": width * groups,
            "proj_codevector_dim": shapes.get("project_q.weight", (256,))[0],
            "num_negatives": settings.encoder.get("num_negatives", 100),
            "contrastive_logits_temperature": settings.encoder.get("logit_temp", 0.1),
        }
    config["architectures"] = ["Wav2Vec2ForPreTraining"]
    texts: Texts = {"config.json": config, "preprocessor_config.json": _feature_extractor(config, settings)}
    return Conversion("fairseq wav2vec2, pretrained", {WEIGHTS: parts}, texts, unused=source.unused)
