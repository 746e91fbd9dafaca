"""torchaudio's wav2vec2 with a CTC head to the Hugging Face layout: MMS's multilingual romanised aligner.

It is published (``ctc_alignment_mling_uroman``: 300M, 31 outputs) as a state dict with a dictionary.txt beside it.

The names are those of transformers, which took torchaudio's over, behind other prefixes; see ``wav2vec2_model`` there.

Audio is normalised for it (``do_normalize``): torchaudio's own bundle of these weights, ``MMS_FA``, does so, as the
training of all MMS models did. fairseq's examples/mms/data_prep does not, and runs the same weights on raw samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convert.conversion import Conversion, ConversionError
from convert.fairseq import state_dict
from convert.fairseq_config import feature_extractor
from convert.omnilingual import config_json
from convert.renaming import affine, to_huggingface, weight_normed
from mms_jax.checkpoint.weights import WEIGHTS
from mms_jax.files import read_json

# By width and depth: wav2vec2_large, wav2vec2_xlsr_300m, _1b and _2b there.
HEADS = {(1024, 24): 16, (1280, 48): 16, (1920, 48): 16}
BLANK, UNKNOWN = "<blank>", "<unk>"
_SPECIAL = {"bos": "<s>", "eos": "</s>", "unk": UNKNOWN}
_BESIDE = "dictionary.txt"
_MAX_BYTES = 1 << 20  # of a dictionary; the aligner's has 31 lines
_MARK = "encoder.transformer.layers.0.attention.q_proj.weight"

_SAME = ("conv_layers.{i}.conv", "conv_layers.{i}.layer_norm")
_SAME_IN_TRANSFORMER = (
    "layer_norm",
    "layers.{i}.attention.q_proj",
    "layers.{i}.attention.k_proj",
    "layers.{i}.attention.v_proj",
    "layers.{i}.attention.out_proj",
    "layers.{i}.layer_norm",
    "layers.{i}.feed_forward.intermediate_dense",
    "layers.{i}.feed_forward.output_dense",
    "layers.{i}.final_layer_norm",
)
NAMES = (
    *(name for part in _SAME for name in affine(f"feature_extractor.{part}", f"wav2vec2.feature_extractor.{part}")),
    *affine("encoder.feature_projection.layer_norm", "wav2vec2.feature_projection.layer_norm"),
    *affine("encoder.feature_projection.projection", "wav2vec2.feature_projection.projection"),
    *weight_normed("encoder.transformer.pos_conv_embed.conv", "wav2vec2.encoder.pos_conv_embed.conv"),
    *(
        name
        for part in _SAME_IN_TRANSFORMER
        for name in affine(f"encoder.transformer.{part}", f"wav2vec2.encoder.{part}")
    ),
    *affine("aux", "lm_head"),
)


def is_torchaudio(held: Any) -> bool:
    """Whether what a file held has the names of torchaudio's wav2vec2."""
    return isinstance(held, Mapping) and _MARK in held


def convert_torchaudio(path: Path, held: Any, *, dictionary: Path | None, stated: Path | None) -> Conversion:
    """What a state dict of torchaudio's wav2vec2 becomes, read from ``path``.

    Args:
        path: for messages, and for what lies beside it.
        held: what the file held.
        dictionary: a token a line, in order of id; None: dictionary.txt beside ``path``, or the file of its name
            that ends in .dict, which is where fairseq's script keeps it.
        stated: a config.json, for a model of another size than the published ones.

    Raises:
        ConversionError: another architecture, an unknown size, no CTC head, or a dictionary that does not fit.
    """
    tensors = state_dict(held, str(path))
    if "aux.weight" not in tensors:
        raise ConversionError(
            f"{path}: no CTC head (aux.weight); of torchaudio's models only recognisers are converted"
        )
    if "feature_extractor.conv_layers.1.layer_norm.weight" not in tensors:
        raise ConversionError(
            f"{path}: its convolutions have a group norm, so it is one of torchaudio's English models, not MMS's; "
            "these are on the hub in the Hugging Face layout"
        )
    parts = to_huggingface(tensors, NAMES, source=str(path))
    config = read_json(stated, error=ConversionError) if stated else config_json(parts, path, HEADS, pre_norm=True)
    file = dictionary or _beside(path)
    rows = tensors["aux.weight"].shape[0]
    vocabulary = _vocabulary(read_tokens(file), rows, file)
    tokens = {name: token for name, token in _SPECIAL.items() if token in vocabulary}
    config |= {"architectures": ["Wav2Vec2ForCTC"], "vocab_size": rows, "pad_token_id": vocabulary[BLANK]}
    config |= {f"{name}_token_id": vocabulary[token] for name, token in tokens.items() if name != "unk"}
    texts = {
        "config.json": config,
        "vocab.json": vocabulary,
        "tokenizer_config.json": _tokenizer_config(vocabulary, tokens),
        "preprocessor_config.json": feature_extractor(config, normalize=True),
    }
    notes = [
        f"the vocabulary is {file}'s; audio is normalised, as by torchaudio's bundle of this model and unlike "
        "fairseq's script"
    ]
    return Conversion(f"torchaudio's wav2vec2 with {rows} outputs", {WEIGHTS: parts}, texts, notes=notes)


def _tokenizer_config(vocabulary: Mapping[str, int], tokens: Mapping[str, str]) -> dict[str, object]:
    """There is no word delimiter: words are aligned one behind the other."""
    return {
        "tokenizer_class": "Wav2Vec2CTCTokenizer",
        "pad_token": BLANK,
        **{f"{name}_token": tokens.get(name) for name in _SPECIAL if name != "unk"},
        "unk_token": UNKNOWN,
        "word_delimiter_token": "|",
        "replace_word_delimiter_char": " ",
        "do_lower_case": False,
        # so that it is taken for no letter; fairseq's padding, which no frame is
        "additional_special_tokens": [token for token in ("<pad>",) if token in vocabulary],
    }


def _beside(path: Path) -> Path:
    for candidate in (path.with_name(_BESIDE), path.with_suffix(".dict")):
        if candidate.is_file():
            return candidate
    raise ConversionError(
        f"{path}: no vocabulary in it and no {_BESIDE} beside it; fetch that, or name it (--dictionary)"
    )


def read_tokens(path: Path) -> list[str]:
    """The tokens of a dictionary with one a line, in order of id.

    Raises:
        ConversionError: it cannot be read, a line is empty, or a token is there twice.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ConversionError(f"{path}: {path.stat().st_size:,} bytes; a dictionary has at most {_MAX_BYTES:,}")
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except OSError as error:
        raise ConversionError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise ConversionError(f"{path}: not UTF-8 ({error})") from error
    tokens: dict[str, None] = {}
    for number, token in enumerate(map(str.strip, lines), 1):
        if not token or " " in token:
            raise ConversionError(f"{path}: line {number} is {token[:40]!r}; expected one token")
        if token in tokens:
            raise ConversionError(f"{path}: line {number} is {token[:40]!r} again; ids would be ambiguous")
        tokens[token] = None
    return list(tokens)


def _vocabulary(tokens: Sequence[str], rows: int, file: Path) -> dict[str, int]:
    if len(tokens) != rows:
        raise ConversionError(f"{file}: {len(tokens)} tokens, but the model has {rows} outputs; it is another model's")
    if BLANK not in tokens:
        raise ConversionError(f"{file}: no {BLANK}, the token that CTC needs; it is another model's")
    return {token: index for index, token in enumerate(tokens)}
