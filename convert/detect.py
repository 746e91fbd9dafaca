"""What a source is, and which converter is for it."""

from __future__ import annotations

import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from convert.archives import unpack
from convert.conversion import Conversion, ConversionError
from convert.fairseq import Options, convert_fairseq, is_fairseq
from convert.fairseq_back import fairseq_from_huggingface
from convert.omnilingual import convert_omnilingual, is_omnilingual
from convert.pickled import ADAPTER, PICKLED, PICKLED_INDEX, convert_pickled, convert_to_bin
from convert.torch_files import StoredTensor, read_torch_file
from convert.vits import EMBEDDING, GENERATOR, convert_vits, vits_to_original
from mms_jax.checkpoint.weights import INDEX, WEIGHTS

TARGETS = ("huggingface", "fairseq", "vits", "bin")
DEFAULTS = Options()
_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")


@contextmanager
def opened(source: Path) -> Iterator[Path]:
    """A file or directory to convert; an archive is unpacked, under limits, for as long as it is needed.

    Raises:
        ConversionError: there is nothing of that name, or an archive holds several things. UnsafeFileError: an archive
            that asks for more than plain files.
    """
    if not source.exists():
        raise ConversionError(f"{source}: no such file or directory")
    if source.is_dir() or not _is_archive(source):
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="mms_jax-convert-") as folder:
        unpack(source, Path(folder) / "unpacked")
        yield _only_folder(Path(folder) / "unpacked")


def _is_archive(path: Path) -> bool:
    """By name, and for zips, which PyTorch's files are too, by what they hold."""
    if not path.name.lower().endswith(_ARCHIVES):
        return False
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return not any(name.endswith("data.pkl") for name in archive.namelist())
    return tarfile.is_tarfile(path) or not path.name.lower().endswith(".zip")


def _only_folder(folder: Path) -> Path:
    """What an archive is about: itself, or the one folder in it."""
    while True:
        entries = list(folder.iterdir())
        if len(entries) != 1 or not entries[0].is_dir():
            return folder
        folder = entries[0]


def convert(
    source: Path, *, to: str = "huggingface", language: str | None = None, options: Options = DEFAULTS
) -> Conversion:
    """What ``source`` becomes in the layout ``to``; nothing is written, and tensors are read when they are.

    Args:
        source: a directory or a file; archives are for ``opened``.
        to: one of ``TARGETS``.
        language: of a voice, for its tokenizer.
        options: for wav2vec2 of fairseq and fairseq2.

    Raises:
        ConversionError: nothing that is known here, or it cannot become that. UnsafeFileError: it asks for more than
            data.
    """
    if to != "huggingface":
        return _back(source, to)
    if source.is_dir():
        return _directory(source, language)
    if ADAPTER.fullmatch(source.name):
        return convert_pickled(source)
    held = read_torch_file(source)
    if is_fairseq(held):
        return convert_fairseq(source, held, options)
    if is_omnilingual(held):
        return convert_omnilingual(source, held, tokenizer=options.dictionary, stated=options.config)
    if _is_voice(held):
        return convert_vits(source, language=language)
    if isinstance(held, Mapping) and any(isinstance(value, StoredTensor) for value in held.values()):
        return convert_pickled(source)
    raise ConversionError(
        f"{source}: holds {_described(held)}; that is neither wav2vec2 of fairseq or omnilingual ASR, nor VITS, nor "
        "tensors by name"
    )


def _is_voice(held: Any) -> bool:
    model = held.get("model") if isinstance(held, Mapping) else None
    return isinstance(model, Mapping) and EMBEDDING in model


def _described(held: Any) -> str:
    if isinstance(held, Mapping):
        return f"{', '.join(str(key)[:40] for key in list(held)[:6]) or 'nothing'}{' …' if len(held) > 6 else ''}"
    return f"a {type(held).__name__}"


def _directory(source: Path, language: str | None) -> Conversion:
    names = {path.name for path in source.iterdir()}
    if names & {WEIGHTS, INDEX} and not any(ADAPTER.fullmatch(name) and name.endswith(".bin") for name in names):
        raise ConversionError(f"{source}: is in the Hugging Face layout already; --to says what else it can become")
    if any(GENERATOR.fullmatch(name) for name in names):
        return convert_vits(source, language=language)
    if names & {PICKLED, PICKLED_INDEX} or any(ADAPTER.fullmatch(name) for name in names):
        return convert_pickled(source)
    checkpoints = sorted(name for name in names if name.endswith((".pt", ".pth")))
    hint = f"; name one of its files: {', '.join(checkpoints[:6])}" if checkpoints else ""
    raise ConversionError(f"{source}: neither G_*.pth nor {PICKLED} nor adapter.*.bin there{hint}")


def _back(source: Path, to: str) -> Conversion:
    if not source.is_dir() or not (source / "config.json").is_file():
        raise ConversionError(
            f"{source}: --to {to} converts a directory of the Hugging Face layout, with its config.json"
        )
    if to == "bin":
        return convert_to_bin(source)
    if to == "fairseq":
        return fairseq_from_huggingface(source)
    return vits_to_original(source)
