"""What a source is, and which converter is for it."""

from __future__ import annotations

import re
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from convert.archives import unpack
from convert.conversion import Conversion, ConversionError, called
from convert.fairseq import Options, convert_fairseq, is_fairseq
from convert.fairseq_back import fairseq_from_huggingface
from convert.omnilingual import convert_omnilingual, is_omnilingual
from convert.pickled import ADAPTER, PICKLED, PICKLED_INDEX, bare, convert_pickled, convert_to_bin
from convert.torch_files import StoredTensor, read_torch_file
from convert.torchaudio import convert_torchaudio, is_torchaudio
from convert.vits import EMBEDDING, GENERATOR, convert_vits, vits_to_original
from mms_jax.checkpoint.weights import INDEX, WEIGHTS
from mms_jax.config import VitsConfig
from mms_jax.files import read_json

TARGETS = ("huggingface", "fairseq", "vits", "bin")
DEFAULTS = Options()
_HEAD = 512  # bytes that tell an archive


@contextmanager
def opened(source: Path) -> Iterator[Path]:
    """A file or directory to convert; an archive is unpacked, under limits, for as long as it is needed.

    Raises:
        ConversionError: there is nothing of that name, or an archive holds several checkpoints. UnsafeFileError: an
            archive that asks for more than plain files.
    """
    if not source.exists():
        raise ConversionError(f"{source}: no such file or directory")
    if source.is_dir() or not _is_archive(source):
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="mms_jax-convert-") as folder, called(Path(folder), str(source)):
        unpack(source, folder)
        yield _subject(Path(folder), source)


def _is_archive(path: Path) -> bool:
    """By its first bytes; zips, which PyTorch's files are too, also by what they hold."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
        if head.startswith(b"PK\3\4"):
            with zipfile.ZipFile(path) as archive:
                return not any(re.fullmatch(r"[^/]+/data\.pkl", name) for name in archive.namelist())
    except OSError as error:
        raise ConversionError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (zipfile.BadZipFile, ValueError, NotImplementedError):  # whoever reads it next says what is wrong with it
        return not path.name.endswith((".pt", ".pth", ".bin"))
    return head.startswith(b"\x1f\x8b") or head[257:262] == b"ustar"


def _subject(folder: Path, source: Path) -> Path:
    """What an archive is about: the folder with a checkpoint's files, or the only checkpoint in one file."""
    files = [path for path in folder.rglob("*") if path.is_file() and not _is_litter(path.relative_to(folder))]
    folders = {path.parent for path in files if GENERATOR.fullmatch(path.name) or path.name in (PICKLED, PICKLED_INDEX)}
    folders |= {path.parent for path in files if ADAPTER.fullmatch(path.name) and path.suffix == ".bin"}
    single = [path for path in files if path.suffix in (".pt", ".pth", ".bin")]
    found = sorted(folders) or sorted(single)
    if len(found) == 1:
        return found[0]
    names = ", ".join(str(path.relative_to(folder)) for path in (found or sorted(files))[:6])
    what = "several checkpoints; unpack it and name one" if found else "no checkpoint"
    raise ConversionError(f"{source}: holds {what} ({names})")


def _is_litter(path: Path) -> bool:
    """What macOS puts into archives beside the files."""
    return path.name.startswith("._") or "__MACOSX" in path.parts


def convert(
    source: Path, *, to: str = "huggingface", language: str | None = None, options: Options = DEFAULTS
) -> Conversion:
    """What ``source`` becomes in the layout ``to``; nothing is written, and tensors are read when they are.

    Args:
        source: a directory or a file; archives are for ``opened``.
        to: one of ``TARGETS``.
        language: of a voice, for its tokenizer.
        options: for wav2vec2 of fairseq, fairseq2 and torchaudio.

    Raises:
        ConversionError: nothing that is known here, or it cannot become that. UnsafeFileError: it asks for more than
            data.
    """
    given = {name for name, value in {**options._asdict(), "language": language}.items() if value}

    def only(*names: str) -> None:
        """Refuse what would be ignored."""
        for name in sorted(given - set(names)):
            hint = {"language": "; adapters are chosen with --languages", "languages": "; a voice's is --language"}
            raise ConversionError(f"{source}: --{name.replace('_', '-')} means nothing for this{hint.get(name, '')}")

    if to != "huggingface":
        only()
        return _back(source, to)
    source = _only_file(source)
    if source.is_dir() or ADAPTER.fullmatch(source.name):
        is_voice = source.is_dir() and any(GENERATOR.fullmatch(path.name) for path in source.iterdir())
        only(*(["language"] if is_voice else []))
        return convert_vits(source, language=language) if is_voice else _pickled(source)
    held = read_torch_file(source)
    if is_fairseq(held):
        only(*Options._fields)
        return convert_fairseq(source, held, options)
    if is_omnilingual(held):
        only("dictionary", "config")
        return convert_omnilingual(source, held, tokenizer=options.dictionary, stated=options.config)
    if is_torchaudio(held):
        only("dictionary", "config")
        return convert_torchaudio(source, held, dictionary=options.dictionary, stated=options.config)
    if _is_voice(held):
        only("language")
        return convert_vits(source, language=language)
    if isinstance(held, Mapping) and any(isinstance(value, StoredTensor) for value in bare(held).values()):
        only()
        return convert_pickled(source)
    raise ConversionError(
        f"{source}: holds {_described(held)}; that is neither wav2vec2 of fairseq, omnilingual ASR or torchaudio, nor "
        "VITS, nor tensors by name"
    )


def _only_file(source: Path) -> Path:
    """The one checkpoint in a directory that has nothing else to convert, such as what ``--to fairseq`` makes."""
    if not source.is_dir():
        return source
    names = {path.name for path in source.iterdir()}
    if names & {WEIGHTS, INDEX, PICKLED, PICKLED_INDEX} or any(
        GENERATOR.fullmatch(n) or ADAPTER.fullmatch(n) for n in names
    ):
        return source
    files = [name for name in names if name.endswith((".pt", ".pth"))]
    return source / files[0] if len(files) == 1 else source


def _is_voice(held: Any) -> bool:
    model = held.get("model") if isinstance(held, Mapping) else None
    return isinstance(model, Mapping) and EMBEDDING in model


def _described(held: Any) -> str:
    if isinstance(held, Mapping):
        return f"{', '.join(str(key)[:40] for key in list(held)[:6]) or 'nothing'}{' …' if len(held) > 6 else ''}"
    return f"a {type(held).__name__}"


def _pickled(source: Path) -> Conversion:
    """A directory of the Hugging Face layout, or an adapter, whose weights are pickles."""
    if source.is_file():
        return convert_pickled(source)
    names = {path.name for path in source.iterdir()}
    if names & {PICKLED, PICKLED_INDEX} or any(ADAPTER.fullmatch(name) and name.endswith(".bin") for name in names):
        return convert_pickled(source)
    if names & {WEIGHTS, INDEX}:
        raise ConversionError(f"{source}: is in the Hugging Face layout already; --to says what else it can become")
    checkpoints = sorted(name for name in names if name.endswith((".pt", ".pth")))
    hint = f"; name one of its files: {', '.join(checkpoints[:6])}" if checkpoints else ""
    raise ConversionError(f"{source}: neither G_*.pth nor {PICKLED} nor adapter.*.bin there{hint}")


def _back(source: Path, to: str) -> Conversion:
    if not source.is_dir() or not (source / "config.json").is_file():
        raise ConversionError(
            f"{source}: --to {to} converts a directory of the Hugging Face layout, with its config.json"
        )
    is_voice = read_json(source / "config.json", error=ConversionError).get("model_type") == VitsConfig.model_type
    if to != "bin" and is_voice != (to == "vits"):
        kind, other = ("a voice", "vits") if is_voice else ("wav2vec2", "fairseq")
        raise ConversionError(f"{source}: is {kind}, of which --to {other} or --to bin makes something")
    if to == "bin":
        return convert_to_bin(source)
    if to == "fairseq":
        return fairseq_from_huggingface(source)
    return vits_to_original(source)
