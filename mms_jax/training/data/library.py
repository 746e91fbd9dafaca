"""What is asked of the `datasets` library: finding, downloading and reading tables, never decoding audio.

Since release 4 it decodes, and even stores a path in, an audio column only where torch and torchcodec are installed;
``Undecoded`` keeps it from trying. Its errors become ``DatasetError``, and it is kept quiet while it works.
"""

import contextlib
import glob
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import datasets.config
from datasets.exceptions import DatasetNotFoundError, DatasetsError
from datasets.utils.file_utils import xopen
from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage] - of whichever HTTP library

from mms_jax.errors import AudioError, DatasetError

__all__ = [
    "Hub",
    "RemoteAudio",
    "Undecoded",
    "load_saved",
    "named_errors",
    "quiet",
    "read_arrow_files",
    "stream_arrow_file",
]

Splits = dict[str, datasets.Dataset]
Streams = dict[str, datasets.IterableDataset]

MAX_REASON_CHARS = 300  # the library's explanations have paragraphs


class Undecoded(datasets.Audio):
    """An audio column of paths and bytes, as they are. The library's own class needs torch even to note a path."""

    def encode_example(self, value: Any) -> dict[str, Any]:
        """What is stored: {"bytes": …, "path": …} of a path, bytes or such a mapping."""
        if isinstance(value, str | Path):
            return {"bytes": None, "path": str(value)}
        if isinstance(value, bytes | bytearray):
            return {"bytes": bytes(value), "path": None}
        if isinstance(value, Mapping) and value.keys() & {"bytes", "path"}:
            return {"bytes": value.get("bytes"), "path": value.get("path")}
        raise DatasetError(f"an audio column holds a {type(value).__name__}, expected a path or the bytes of a file")


@dataclass(frozen=True)
class RemoteAudio:
    """A clip that is still on the hub, or inside an archive, while a data set is streamed."""

    url: str
    token: str | bool | None = field(default=None, repr=False)

    def read(self) -> bytes:
        """The bytes of its file; raises ``AudioError`` if they do not come."""
        try:
            with xopen(self.url, "rb", download_config=datasets.DownloadConfig(token=self.token)) as file:
                return file.read()
        except Exception as error:  # of the hub, the network, the archive, its compression; nothing is swallowed
            raise AudioError(f"{self.url}: cannot be fetched ({_one_line(error)})") from error


@dataclass(frozen=True)
class Hub:
    """A data set that the library finds by itself: on the hub, or in a local folder without tables of text."""

    name: str
    config: str | None = None
    revision: str | None = None
    token: str | bool | None = field(default=None, repr=False)
    cache_dir: str | None = None

    def table_files(self) -> tuple[str, dict[str, list[str]]]:
        """How the library would read it ("csv", "json", "parquet", …) and the files of each split."""
        with self._errors(), quiet():
            builder = self._builder()
        files = builder.config.data_files or {}
        return str(builder.name), {str(split): list(map(str, paths)) for split, paths in files.items()}

    def load(self) -> Splits:
        """All splits, downloaded where they are not yet."""
        with self._errors(), quiet(bars=not self.is_local and sys.stderr.isatty()):
            builder = self._builder()
            if isinstance(builder, datasets.GeneratorBasedBuilder):  # makes its tables itself, and so would encode
                builder = self._builder(features=_features(builder))
            builder.download_and_prepare()
            loaded = builder.as_dataset()
        assert isinstance(loaded, Mapping)
        return {str(split): dataset for split, dataset in loaded.items()}

    def stream(self) -> Streams:
        """All splits, to be read as they are needed."""
        with self._errors(), quiet():
            streams = self._builder().as_streaming_dataset()
        assert isinstance(streams, Mapping)
        return {str(split): stream for split, stream in streams.items()}

    @property
    def is_local(self) -> bool:
        """Whether it is a folder here."""
        return Path(self.name).is_dir()

    def _errors(self) -> contextlib.AbstractContextManager[None]:
        return named_errors(self.name, first="" if self.is_local else "there is no such folder here; ")

    def _builder(self, **options: Any) -> datasets.DatasetBuilder:
        places = {"revision": self.revision, "token": self.token, "cache_dir": self.cache_dir}
        return datasets.load_dataset_builder(self.name, self.config, **places, **options)


def _features(builder: datasets.DatasetBuilder) -> datasets.Features | None:
    """The types of an audio folder's or an archive's columns, with the audio undecoded."""
    streams = builder.as_streaming_dataset()
    assert isinstance(streams, Mapping)
    features = next(iter(streams.values())).features
    return features and datasets.Features({name: _undecoded(feature) for name, feature in features.items()})


def _undecoded(feature: Any) -> Any:
    return Undecoded(decode=False) if isinstance(feature, datasets.Audio) else feature


def load_saved(folder: Path) -> Splits | datasets.Dataset:
    """What ``save_to_disk`` wrote: one data set, or one per split."""
    with named_errors(str(folder)), quiet():
        loaded = datasets.load_from_disk(str(folder))
    if isinstance(loaded, datasets.DatasetDict):
        return {str(split): dataset.with_format(None) for split, dataset in loaded.items()}
    return loaded.with_format(None)


def read_arrow_files(files: Sequence[Path], *, cache_dir: str | None = None) -> datasets.Dataset:
    """The rows of Parquet or Arrow files, in the library's cache; all of one kind."""
    with named_errors(str(files[0])), quiet():
        loaded = datasets.load_dataset(_kind(files), data_files=_escaped(files), split="train", cache_dir=cache_dir)
    assert isinstance(loaded, datasets.Dataset)
    return loaded


def stream_arrow_file(path: Path) -> datasets.IterableDataset:
    """The rows of a Parquet or Arrow file, read as they are needed."""
    with named_errors(str(path)), quiet():
        loaded = datasets.load_dataset(_kind([path]), data_files=_escaped([path]), split="train", streaming=True)
    assert isinstance(loaded, datasets.IterableDataset)
    return loaded


def _kind(files: Sequence[Path]) -> str:
    return files[0].suffix.lower().removeprefix(".")


def _escaped(files: Sequence[Path]) -> list[str]:
    """The library takes file names for patterns."""
    return [glob.escape(str(path.resolve())) for path in files]


_LOCK = threading.Lock()
_undo = contextlib.ExitStack()  # how to leave the library as it was
_within = 0  # blocks of all threads that want it quiet


@contextmanager
def quiet(*, bars: bool = False) -> Iterator[None]:
    """The library without progress bars (unless ``bars``) and log lines, while any thread is within such a block.

    Nor does it import PyTorch, which it would only to put the epoch of a stream into a tensor: that takes seconds, and
    brings CUDA libraries beside JAX's.
    """
    global _within
    with _LOCK:
        _within += 1
        if _within == 1:
            _silence(bars=bars)
    try:
        yield
    finally:
        with _LOCK:
            _within -= 1
            if _within == 0:
                _undo.close()


def _silence(*, bars: bool) -> None:
    _undo.callback(datasets.logging.set_verbosity, datasets.logging.get_verbosity())
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    _undo.callback(setattr, datasets.config, "TORCH_AVAILABLE", datasets.config.TORCH_AVAILABLE)
    datasets.config.TORCH_AVAILABLE &= "torch" in sys.modules
    if not bars and not datasets.are_progress_bars_disabled():
        _undo.callback(datasets.enable_progress_bars)
        datasets.disable_progress_bars()


@contextmanager
def named_errors(name: str, *, first: str = "") -> Iterator[None]:
    """The library's errors as ``DatasetError``, with the data set's name and what to do; ``first`` says more."""
    try:
        yield
    except DatasetError:
        raise
    except Exception as error:  # what a dozen packages make of somebody's files; nothing is swallowed
        raise DatasetError(f"data set {name!r}: {first}{_reason(error)}; {_remedy(error)}") from error


def _reason(error: BaseException) -> str:
    cause = error.__cause__ if isinstance(error, DatasetsError) and error.__cause__ is not None else error
    text = _one_line(cause)
    return text if len(text) <= MAX_REASON_CHARS else text[:MAX_REASON_CHARS] + " …"


def _remedy(error: BaseException) -> str:
    text = str(error)
    if isinstance(error, DatasetNotFoundError):
        return "check the spelling and the revision; a private or gated one needs --token (or: hf auth login)"
    if isinstance(error, ConnectionError | HTTPError):
        return "the hub cannot be reached, or HF_HUB_OFFLINE is set: connect, or download the data and name its folder"
    if "scripts are no longer supported" in text:
        return "a script cannot be run: try the hub's own copy (revision refs/convert/parquet), or a folder of tables"
    if "Config name is missing" in text or "BuilderConfig" in text:
        return "choose one with --dataset_config_name"
    if isinstance(error, FileNotFoundError):
        return "name a data set of the hub, a folder with tables or audio, or a .csv, .jsonl, .parquet or .arrow file"
    return "see that its files are whole and all have the same columns"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
