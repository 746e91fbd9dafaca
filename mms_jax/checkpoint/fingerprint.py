"""What a base is: a fingerprint of the weights that adapters rest on, whatever else lies in its files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mms_jax.checkpoint.engine import Binding
from mms_jax.checkpoint.hub import Source, require
from mms_jax.checkpoint.tensors import TensorInfo
from mms_jax.checkpoint.wav2vec2 import bind_encoder
from mms_jax.checkpoint.wav2vec2_rules import SPEC_EMBED
from mms_jax.checkpoint.weights import INDEX, WEIGHTS, open_weights
from mms_jax.config import Wav2Vec2Config
from mms_jax.errors import CheckpointError
from mms_jax.models.trees import is_adapter_path

FINGERPRINT_SHOWN = 12  # characters in messages and model cards: 48 bits tell a person's bases apart

_THREADS = 2  # hashing runs without the interpreter's lock; on two cores more are no faster
_CHUNK_BYTES = 1 << 20


def base_fingerprint(source: Source) -> str:
    """Identify a wav2vec2 checkpoint's encoder: 64 hexadecimal digits (BLAKE2b) over names, dtypes, shapes and bytes.

    Adapters, heads, what only pretraining reads and the vector that time masking writes do not count, nor do sharding
    and the spelling of weight norms: a copy of a base, or the base saved with another language inside, has the same.
    Nothing is held in memory; 1B parameters in float32 take seconds.

    Raises:
        CheckpointError: wrong or incomplete; the message names the file and the tensor. ConfigError: config.json.
    """
    config = Wav2Vec2Config.from_file(require(source, "config.json"))
    bindings = sorted(filter(_is_base, bind_encoder(source, config)), key=lambda binding: binding.rule.jax)
    with ThreadPoolExecutor(_THREADS) as pool:
        digests = list(pool.map(lambda binding: _digest(binding.name, binding.info), bindings))
    return _combined(bindings, digests)


def _is_base(binding: Binding) -> bool:
    return not is_adapter_path(binding.rule.jax) and binding.rule.jax != SPEC_EMBED


def _combined(bindings: Sequence[Binding], digests: Sequence[bytes]) -> str:
    whole = hashlib.blake2b(digest_size=32)
    for (rule, _, info), digest in zip(bindings, digests, strict=True):
        # Our paths, because the PyTorch names of one tensor differ between files; no field can run into the next.
        whole.update(f"{rule.jax}\0{info.dtype}\0{list(info.shape)}\0".encode() + digest)
    return whole.hexdigest()


def _digest(name: str, info: TensorInfo) -> bytes:
    digest, remaining = hashlib.blake2b(digest_size=32), info.num_bytes
    try:
        with info.path.open("rb", buffering=0) as file:
            file.seek(info.offset)
            while remaining:
                chunk = file.read(min(_CHUNK_BYTES, remaining))
                if not chunk:
                    raise OSError("the file ends inside it")
                digest.update(chunk)
                remaining -= len(chunk)
    except OSError as error:
        raise CheckpointError(f"{info.path}: {name} cannot be read ({error.strerror or error})") from error
    return digest.digest()


def holds_adapters(source: Source) -> bool:
    """Whether a checkpoint's weights hold a CTC head and adapter layers, so that they can carry other adapters as is.

    Raises:
        CheckpointError: there are no weights, or they are malformed.
    """
    names = open_weights(source)
    return "lm_head.weight" in names and any(".adapter_layer." in name for name in names)


def weight_files(source: Source) -> list[Path]:
    """The files that a checkpoint's weights consist of: one, or shards and then their index.

    Raises:
        CheckpointError: there are no weights, or they are malformed.
    """
    shards = sorted({info.path for info in open_weights(source).values()})
    return shards if source.find(WEIGHTS) is not None else [*shards, require(source, INDEX)]
