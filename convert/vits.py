"""Original VITS checkpoints, MMS-TTS among them (G_*.pth, config.json, vocab.txt), to the Hugging Face layout and back.

In the original, nearly all convolutions of the decoder and of the WaveNets are weight-normed: a kernel is g * v / |v|,
the norm taken for each index of the first axis, which in a transposed convolution is that of its inputs. The Hugging
Face layout has the decoder's kernels themselves. The rest differs in names and a trailing axis, and keeps its bits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convert.conversion import Conversion, ConversionError, Part
from convert.renaming import Tensor
from convert.safe_tensors import stored
from convert.torch_files import StoredTensor, read_torch_file
from convert.vits_names import discriminator_entries, voice_entries
from convert.vits_settings import Settings, Symbols, original_files, read_symbols, tokenizer_files
from convert.vits_weights import SHOWN, make_parts
from mms_jax.checkpoint import load_text_tokenizer, open_source
from mms_jax.checkpoint.hub import require
from mms_jax.checkpoint.tensors import read_header
from mms_jax.checkpoint.weights import WEIGHTS, open_weights
from mms_jax.config import VitsConfig

DISCRIMINATOR = "discriminator.safetensors"
EMBEDDING = "enc_p.emb.weight"
LEARNING_RATE = 2e-4  # VITS's own; training reads it from its config.json
GENERATOR = re.compile(r"G_(\d+)\.pth")
NOT_READ = {
    "iteration": "the number of training steps",
    "optimizer": "averages of gradients, with which only the original code could go on training",
    "learning_rate": "that of the last training step",
}


def convert_vits(source: Path, *, language: str | None) -> Conversion:
    """Prepare a voice, and its discriminators if they are there, for the Hugging Face layout.

    Args:
        source: a directory with G_*.pth, of which the highest step counts, or one such file; config.json and vocab.txt
            lie beside it, and D_*.pth of the same step may.
        language: its tag, for tokenizer_config.json; Romanian needs it.

    Raises:
        ConversionError: no voice that the layout can hold, or files that do not fit together; the message names the
            file and the tensor, key or line. Values that are not finite are found only when a tensor is read.
    """
    generator, notes = _find_generator(Path(source))
    settings = Settings(generator.with_name("config.json"))
    symbols = read_symbols(generator.with_name("vocab.txt"), settings)
    tensors, unused = _read_model(generator)
    _check_embedding(symbols, tensors, generator)
    config = settings.config(len(symbols.by_id))
    _check_size(config, len(tensors), settings.path)
    files = {WEIGHTS: make_parts(voice_entries(config), tensors, file=generator, forward=True)}
    discriminator = _find_discriminator(generator)
    if discriminator is not None:
        tensors, more = _read_model(discriminator)
        files[DISCRIMINATOR] = make_parts(discriminator_entries(), tensors, file=discriminator, forward=True)
        unused |= more
    texts, more_notes = tokenizer_files(symbols, settings, language=language)
    values = {**config.to_dict(), "architectures": ["VitsModel"], "dtype": "float32"}
    texts = {"config.json": values, **texts}
    return Conversion(f"VITS ({generator.name})", files, texts, unused=unused, notes=notes + more_notes)


def vits_to_original(directory: Path) -> Conversion:
    """Prepare a checkpoint in the Hugging Face layout for the original VITS code, to speak or to go on training.

    What comes of it: G_0.pth, config.json, vocab.txt, and D_0.pth if there is a discriminator.safetensors.

    Raises:
        ConversionError: the original cannot hold it; the message names the attribute or tensor. CheckpointError: not a
            whole checkpoint in the Hugging Face layout, or values that are not finite when a tensor is read.
    """
    source = open_source(directory)
    path = require(source, "config.json")
    config = VitsConfig.from_file(path)
    tokenizer = load_text_tokenizer(source, num_symbols=config.vocab_size)
    texts, notes = original_files(config, tokenizer, path)
    weights: dict[str, Tensor] = dict(stored(open_weights(source)))
    parts = make_parts(voice_entries(config), weights, file=path.with_name(WEIGHTS), forward=False)
    files = {"G_0.pth": _checkpoint(parts)}
    discriminator = source.find(DISCRIMINATOR)
    if discriminator is not None:
        weights = dict(stored(read_header(discriminator)))
        parts = make_parts(discriminator_entries(), weights, file=discriminator, forward=False)
        files["D_0.pth"] = _checkpoint(parts)
    return Conversion("VITS in the Hugging Face layout", {}, texts, files, notes=notes)


def _checkpoint(parts: Sequence[Part]) -> dict[str, Any]:
    """What VITS saves, before the first step: it loads no model without the state of an optimiser that fits it."""
    group = {"lr": LEARNING_RATE, "betas": (0.8, 0.99), "eps": 1e-9, "weight_decay": 0.01, "amsgrad": False}
    group |= {"params": list(range(len(parts)))}
    model = {part.target: part for part in parts}
    optimizer = {"state": {}, "param_groups": [group]}
    return {"model": model, "iteration": 1, "optimizer": optimizer, "learning_rate": LEARNING_RATE}


def _find_generator(source: Path) -> tuple[Path, list[str]]:
    if source.is_file():
        return source, []
    names = sorted(path.name for path in source.glob("*.pth"))
    steps = {int(match[1]): match[0] for name in names if (match := GENERATOR.fullmatch(name))}
    if not steps:
        found = ", ".join(names[:SHOWN]) or "none"
        raise ConversionError(
            f"{source}: no G_<step>.pth there (.pth files: {found}); if the generator has another name, pass the file"
        )
    chosen = steps[max(steps)]
    others = [name for _, name in sorted(steps.items()) if name != chosen]
    note = f"of several generators, {chosen} has the highest step; pass the file to take {' or '.join(others)}"
    return source / chosen, [note] if others else []


def _find_discriminator(generator: Path) -> Path | None:
    if not GENERATOR.fullmatch(generator.name):
        return None
    wanted = generator.with_name(f"D{generator.name[1:]}")
    others = sorted(path.name for path in generator.parent.glob("D_*.pth"))
    if others and not wanted.is_file():
        raise ConversionError(
            f"{wanted}: missing, but those of other steps are there ({', '.join(others[:SHOWN])}); fetch it, "
            "or move those away to convert the voice alone"
        )
    return wanted if others else None


def _read_model(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a checkpoint's model, and why the rest is left out."""
    values = read_torch_file(path)
    model = values.get("model") if isinstance(values, Mapping) else None
    if not isinstance(values, Mapping) or not isinstance(model, Mapping) or not model:
        found = ", ".join(map(repr, list(values)[:SHOWN])) if isinstance(values, Mapping) else type(values).__name__
        raise ConversionError(f"{path}: no tensors under 'model', where VITS keeps them (found: {found})")
    for name, tensor in model.items():
        if not isinstance(name, str) or not isinstance(tensor, StoredTensor):
            raise ConversionError(f"{path}: {name!r} under 'model' is a {type(tensor).__name__}, not a tensor")
    others = [key for key in values if key != "model"]
    reasons = {f"{path.name}: {key}": NOT_READ.get(key, "VITS does not read it either") for key in others}
    return dict(model), reasons


def _check_embedding(symbols: Symbols, tensors: Mapping[str, Tensor], generator: Path) -> None:
    """Compare vocab.txt with the weights first: no other mismatch is as likely, or as easily explained."""
    shape, count = tensors[EMBEDDING].shape if EMBEDDING in tensors else (), len(symbols.by_id)
    if len(shape) == 2 and shape[0] != count:
        empty = ", the last of them empty" if symbols.by_id and not symbols.by_id[-1] else ""
        raise ConversionError(
            f"{symbols.source}: {count} symbol(s){empty}, but {generator.name} has embeddings of {shape[0]} "
            f"({EMBEDDING}); take the vocab.txt that it was trained with"
        )


def _check_size(config: VitsConfig, num_tensors: int, path: Path) -> None:
    """Refuse numbers of layers that no tensors stand behind, before a name is made for every one."""
    if config.num_hidden_layers + len(config.upsample_rates) * len(config.resblock_kernel_sizes) > num_tensors:
        raise ConversionError(
            f"{path}: 'n_layers', 'upsample_rates' and 'resblock_kernel_sizes' ask for more tensors than there are "
            f"({num_tensors})"
        )
