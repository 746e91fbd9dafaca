"""Encoder features: load any wav2vec2 checkpoint, get hidden states of its layers with the times of their frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from os import PathLike
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from mms_jax.audio import SAMPLING_RATE
from mms_jax.checkpoint import Checkpoint, load_feature_extractor, load_wav2vec2, open_source
from mms_jax.config import Wav2Vec2Config
from mms_jax.errors import AudioError, NumericsError, SettingError
from mms_jax.features import FeatureExtractor
from mms_jax.models import Wav2Vec2Model
from mms_jax.models.layers import fold_weight_norm
from mms_jax.models.trees import Params
from mms_jax.pipelines.batching import MAX_DURATION, is_many, not_finite
from mms_jax.pipelines.dtypes import WAV2VEC2_DTYPES, check_dtype
from mms_jax.pipelines.results import Item, forward_rows, load_windows, one_or_all
from mms_jax.pipelines.waveforms import model_input

Depth = int | Literal["all"] | None  # index of a hidden state, from 0; None: the last one after the encoder's norm


@dataclass(frozen=True, kw_only=True)
class EncoderFeatures:
    """The hidden states of one item, or why there are none.

    Frame i is computed from the ``frame_samples`` (400 in every MMS model: 25 ms) samples from ``i * frame_hop`` (320:
    20 ms) on, all of which lie in the audio; through attention it also knows the others.
    """

    duration: float  # seconds of audio; 0.0 where it could not be read
    frame_hop: int  # samples at 16 kHz
    frame_samples: int
    states: np.ndarray | None = None
    error: AudioError | NumericsError | None = None

    @property
    def hidden(self) -> np.ndarray:
        """Float32 [T, D], or [L + 1, T, D] for all layers; raises the item's error if it has one."""
        if self.error is not None:
            raise self.error
        assert self.states is not None
        return self.states

    @property
    def times(self) -> np.ndarray:
        """Float64 [T]: where each frame starts, seconds. Its audio ends ``frame_samples`` later."""
        return np.arange(self.hidden.shape[-2]) * self.frame_hop / SAMPLING_RATE

    @property
    def centers(self) -> np.ndarray:
        """Float64 [T]: the middle of each frame's audio, seconds."""
        return self.times + self.frame_samples / (2 * SAMPLING_RATE)


def load_encoder(
    model: str | PathLike[str],
    *,
    dtype: Any = "float32",
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | PathLike[str] | None = None,
    local_files_only: bool = False,
    scan_layers: bool | None = None,
) -> SpeechEncoder:
    """Load the encoder of a wav2vec2 checkpoint: pretrained (``facebook/mms-300m``), recognition, or identification.

    The arguments are those of ``load_asr``. A recognition checkpoint's adapters are those of its base weights, English
    in ``facebook/mms-1b-all``: they are part of the layers.

    Raises:
        CheckpointError: not found, wrong or incomplete; names the file and the tensor.
    """
    resolved = check_dtype(dtype, WAV2VEC2_DTYPES)
    scan = jax.default_backend() != "cpu" if scan_layers is None else scan_layers
    source = open_source(model, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only)
    checkpoint = load_wav2vec2(source, dtype=resolved, stack_layers=scan)
    return SpeechEncoder(source.name, checkpoint, load_feature_extractor(source), resolved, scan)


class SpeechEncoder:
    """A loaded encoder; made by ``load_encoder``."""

    def __init__(
        self,
        name: str,
        checkpoint: Checkpoint,
        feature_extractor: FeatureExtractor,
        dtype: Any,
        scan_layers: bool,
    ):
        self.feature_extractor = feature_extractor
        self._name = name
        self._config, self._params = checkpoint
        self._dtype = dtype
        self._scan_layers = scan_layers

    def __repr__(self) -> str:
        c = self._config
        size = f"{c.num_hidden_layers} layers of width {c.hidden_size}"
        return f"SpeechEncoder({self._name!r}, {size}, {jnp.dtype(self._dtype)})"

    @property
    def config(self) -> Wav2Vec2Config:
        """The architecture."""
        return self._config

    @property
    def module(self) -> Wav2Vec2Model:
        """The Flax module of ``params``."""
        return Wav2Vec2Model(self._config, self._dtype, self._scan_layers)

    @property
    def params(self) -> Params:
        """The parameter tree."""
        return self._params

    def features(
        self, audio: Any, *, layer: Depth = None, batch_size: int = 8, max_duration: float = MAX_DURATION
    ) -> Any:
        """Hidden states of speech, padding removed.

        Args:
            audio: a path, bytes, a binary file object, a float array at 16 kHz, (array, rate), a ``datasets`` audio
                value, or a list of these.
            layer: 0 is the input of the first layer, i the output of the i-th of L layers, -1 that of the last, as in
                the ``hidden_states`` of transformers 5; "all" gives these L + 1 together. None gives what the heads
                read, transformers' ``last_hidden_state``: in pre-norm models (all of MMS) the last layer's output
                after the encoder's final norm, which transformers 4 also had in place of ``hidden_states[L]``.
            batch_size: most items in one forward pass.
            max_duration: longest item, seconds; what is longer is an error.

        Returns:
            An ``EncoderFeatures``, or for a list a list of them in order. Audio of less than one frame (25 ms) has no
            frames: [0, D]. All layers of the 1B model take 12.5 MB for each second of audio.

        Raises:
            SettingError: no such layer. AudioError: a single item that cannot be used. NumericsError: the model's
                output for it is not finite. In a list an item's ``EncoderFeatures`` carries the error instead, and the
                others are what they would be without it.
        """
        depth = self._depth(layer)
        many = is_many(audio)
        inputs, results = list(audio) if many else [audio], []
        for items in load_windows(inputs, many=many, max_duration=max_duration):
            found = [self._empty(item, depth) for item in items]
            todo = [index for index, item in enumerate(items) if self._num_frames(item)]
            rows = forward_rows(
                partial(self._jitted, self._folded, depth=depth),
                items,
                todo,
                config=self._config,
                batch_size=batch_size,
                ahead=depth != "all",  # of the 1B a batch of eight times 30 s is 3 GB then
            )
            for index, row in rows:
                states = row["states"][..., : self._num_frames(items[index]), :]
                if np.isfinite(states).all():
                    found[index] = replace(found[index], states=states.copy())
                else:
                    found[index] = replace(found[index], states=None, error=not_finite(self._dtype))
            results += found
        return one_or_all(results, many=many)

    def _depth(self, layer: Depth) -> Depth:
        """``layer`` with negative indices counted from the front."""
        last = self._config.num_hidden_layers
        if layer is None or (isinstance(layer, str) and layer == "all"):
            return layer
        if isinstance(layer, bool) or not isinstance(layer, (int, np.integer)) or not -last - 1 <= layer <= last:
            raise SettingError(f"layer is {layer!r}; this encoder has 0 … {last} (or {-last - 1} … -1), 'all' and None")
        return int(layer) % (last + 1)

    def _num_frames(self, item: Item) -> int:
        return int(self._config.num_frames(len(item.samples)))

    def _empty(self, item: Item, depth: Depth) -> EncoderFeatures:
        """What an item without frames, or with an error, has."""
        c = self._config
        layers = (c.num_hidden_layers + 1,) if depth == "all" else ()
        return EncoderFeatures(
            duration=item.duration,
            frame_hop=c.samples_per_frame,
            frame_samples=c.min_samples,
            states=np.zeros((*layers, 0, c.hidden_size), np.float32) if item.error is None else None,
            error=item.error,
        )

    @cached_property
    def _folded(self) -> Params:
        return fold_weight_norm(self._params)

    @cached_property
    def _jitted(self):
        """The one jitted call, compiled for each depth: what lies above a layer is not computed."""

        extractor = self.feature_extractor

        def forward(params, samples, num_samples, *, depth):
            inputs = model_input(samples, num_samples, extractor=extractor)
            count = max(depth, 1) if isinstance(depth, int) else self._config.num_hidden_layers
            module = Wav2Vec2Model(self._config.replace(num_hidden_layers=count), self._dtype, self._scan_layers)
            own = _first_layers(params, count)
            output: Any = module.apply({"params": own}, *inputs, output_hidden_states=True)
            if depth is None:
                return {"states": output.last_hidden_state}
            if depth == "all":
                return {"states": jnp.stack(output.hidden_states, axis=1)}
            return {"states": output.hidden_states[depth]}

        return jax.jit(forward, static_argnames="depth")


def _first_layers(params: Mapping[str, Any], count: int) -> Params:
    """A tree of which a module with ``count`` layers reads everything it needs; unrolled ones need no change."""
    encoder = params["encoder"]
    if "layers" in encoder:
        encoder = {**encoder, "layers": jax.tree.map(lambda leaf: leaf[:count], encoder["layers"])}
    return {**params, "encoder": encoder}
