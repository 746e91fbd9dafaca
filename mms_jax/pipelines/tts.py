"""Speech synthesis: load a VITS checkpoint, speak text.

Every text goes through the model up to the decoder by itself, padded only to buckets of its own: durations are rounded
up to whole frames, so that a rounding error that depended on batch mates could change its length. The decoder, 97 % of
the work, runs on batches of windows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from os import PathLike
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mms_jax.checkpoint import load_text_tokenizer, load_vits, open_source, save_vits
from mms_jax.config import VitsConfig
from mms_jax.errors import NumericsError, SettingError, TextError
from mms_jax.features import next_bucket
from mms_jax.models.layers import fold_weight_norm
from mms_jax.models.trees import Params
from mms_jax.models.vits import VitsModel, frame_counts, prepare_kernels, receptive_field
from mms_jax.pipelines.dtypes import check_dtype
from mms_jax.pipelines.hub import Pushable
from mms_jax.pipelines.settings import Settings, check_integer, check_number, checked_settings, settings_of_each
from mms_jax.pipelines.speech import Speech, named
from mms_jax.pipelines.windows import Window, stream_windows, whole_windows, window_batches
from mms_jax.text.tts import EncodedText, VitsTokenizer

MAX_SYMBOLS = 1_500  # in one text, blanks not counted; some 100 s: attention's memory grows with the square
MAX_ROMANIZED = 10 * MAX_SYMBOLS  # characters that uroman is asked for: its time grows with the square, too
MAX_DURATION = 600.0  # seconds of speech from one text
SPLIT = "split the text, best at the ends of sentences"
SLICE = 64  # texts whose latents are held at a time
FIRST_BUCKET = 16  # symbols or frames


class Frames(NamedTuple):
    """A text as the decoder sees it."""

    latents: np.ndarray  # float32 [T, C]
    speaker: int | None


def load_tts(
    model: str | PathLike[str],
    *,
    dtype: Any = "float32",
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | PathLike[str] | None = None,
    local_files_only: bool = False,
) -> SpeechSynthesizer:
    """Load a synthesis checkpoint (VITS, such as ``facebook/mms-tts-eng``: one language each).

    Args:
        model: a local directory, or a hub name.
        dtype: of matrices in memory and of matrix-product operands in flow and decoder: "float32", "bfloat16" or
            "float16". Text and durations are float32 always, so that speech has the same rhythm in any of them.
        revision, token, cache_dir, local_files_only: as in huggingface_hub.

    Raises:
        CheckpointError: not found, wrong or incomplete; names the file and the tensor. SettingError: no ``dtype``.
    """
    resolved = check_dtype(dtype)
    source = open_source(model, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only)
    config, params = load_vits(source, dtype=resolved)
    tokenizer = load_text_tokenizer(source, num_symbols=config.vocab_size)
    return SpeechSynthesizer(config, tokenizer, params, resolved, source.name)._from(source)


class SpeechSynthesizer(Pushable):
    """A loaded synthesis model; made by ``load_tts``."""

    _task = "text-to-speech"

    def __init__(self, config: VitsConfig, tokenizer: VitsTokenizer, params: Params, dtype: Any, name: str):
        self.config = config
        self.tokenizer = tokenizer
        self._params = params
        self._dtype = dtype
        self._name = name

    def __repr__(self) -> str:
        """What was loaded."""
        kind = f"language={self.language!r}, sampling_rate={self.sampling_rate}, dtype={jnp.dtype(self._dtype).name!r}"
        return f"SpeechSynthesizer({self._name!r}, {kind})"

    @property
    def language(self) -> str | None:
        """The tag of the language it speaks; None if the checkpoint does not say."""
        return self.tokenizer.language

    @property
    def sampling_rate(self) -> int:
        """Hz."""
        return self.config.sampling_rate

    @property
    def num_speakers(self) -> int:
        """Voices: ``speaker`` is one of 0 … num_speakers - 1."""
        return self.config.num_speakers

    @property
    def params(self) -> Params:
        """The parameter tree; to hear another one, save it with ``save_pretrained`` and load that."""
        return self._params

    @property
    def module(self) -> VitsModel:
        """The Flax module of ``params``."""
        return VitsModel(self.config, self._dtype)

    def save_pretrained(self, directory: str | PathLike[str], *, params: Params | None = None) -> None:
        """Write a whole checkpoint, tokenizer included, that this library and transformers load.

        Args:
            directory: made if it is not there; files of the same names are replaced.
            params: trained parameters, a tree like ``params``; default those.
        """
        save_vits(directory, config=self.config, params=self.params if params is None else params)
        self.tokenizer.save(directory)

    def synthesize(
        self,
        text: str | Iterable[str],
        *,
        seed: int | Sequence[int] = 0,
        speaking_rate: float | None = None,
        noise_scale: float | None = None,
        noise_scale_duration: float | None = None,
        speaker: int | None = None,
        normalize: bool | None = None,
        batch_size: int | None = None,
        max_duration: float = MAX_DURATION,
        names: Sequence[str] | None = None,
    ) -> Any:
        """Speak one text, or each of a list or an iterator.

        Args:
            text: at most 1,500 symbols each.
            seed: of the noise; one for all texts, or a list with one for each. The same text, seed and settings give
                the same speech, whatever else is in the list.
            speaking_rate: 0.1 … 10; durations are divided by it and rounded up to whole frames. Default: the
                checkpoint's, as for the next two.
            noise_scale: how much the voice varies; 0 for not at all, at most 100.
            noise_scale_duration: how much the rhythm varies; not read by deterministic duration predictors.
            speaker: of a checkpoint with several, which must be told; 0 … ``num_speakers`` - 1.
            normalize: False takes the text as it is: no lower-casing, nothing dropped.
            batch_size: most windows of speech in one pass through the decoder; None chooses for the backend.
            max_duration: longest speech from one text, seconds; at most 600, which is what memory is reckoned for.
            names: what the texts of a list are called in errors, one for each; default "item 0", "item 1", ….

        Returns:
            A ``Speech``, or for a list or an iterator a list of them in order.

        Raises:
            TextError: a single text that cannot be spoken. NumericsError: the model's output for it is not finite. In
                a list its ``Speech`` carries the error instead. SettingError: an argument out of its range.
        """
        many = _is_many(text)
        if not many and not isinstance(text, str):
            raise TextError(f"a text to speak must be a str, got {type(text).__name__}; pass several as a list")
        texts = list(text) if many else [text]
        settings = settings_of_each(
            self.config,
            len(texts),
            seed=seed,
            speaking_rate=speaking_rate,
            noise_scale=noise_scale,
            noise_scale_duration=noise_scale_duration,
            speaker=speaker,
        )
        names = [f"item {i}" for i in range(len(texts))] if names is None else names
        if len(names) != len(texts):
            raise SettingError(f"{len(texts)} text(s), but {len(names)} names; give one for each")
        if batch_size is None:
            batch_size = 1 if jax.default_backend() == "cpu" else 16
        batch_size = check_integer("batch_size", batch_size, 1)
        check_number("max_duration", max_duration, 0, MAX_DURATION)
        speeches: list[Speech] = []
        for start in range(0, len(texts), SLICE):
            some = slice(start, start + SLICE)
            pairs = zip(texts[some], settings[some], strict=True)
            drawn = [self._draw(one, setting, normalize, max_duration) for one, setting in pairs]
            speeches += self._render_all([speech for speech, _ in drawn], [frames for _, frames in drawn], batch_size)
        if many:
            return [named(speech, name) for speech, name in zip(speeches, names, strict=True)]
        if speeches[0].error is not None:
            raise speeches[0].error
        return speeches[0]

    def synthesize_stream(
        self,
        text: str,
        *,
        seed: int = 0,
        speaking_rate: float | None = None,
        noise_scale: float | None = None,
        noise_scale_duration: float | None = None,
        speaker: int | None = None,
        normalize: bool | None = None,
        max_duration: float = MAX_DURATION,
    ) -> Iterator[np.ndarray]:
        """Speak one text piece by piece: float32 chunks [S], the first of half a second, later ones longer.

        Together they are the waveform that ``synthesize`` gives, to float rounding (1e-5). Arguments and errors are
        those of ``synthesize``; errors come at the call, not at the first chunk.
        """
        settings = checked_settings(
            self.config,
            seed=seed,
            speaking_rate=speaking_rate,
            noise_scale=noise_scale,
            noise_scale_duration=noise_scale_duration,
            speaker=speaker,
        )
        check_number("max_duration", max_duration, 0, MAX_DURATION)
        speech, frames = self._draw(text, settings, normalize, max_duration)
        if frames is None:
            assert speech.error is not None
            raise speech.error
        return self._stream(frames)

    def _draw(
        self, text: Any, settings: Settings, normalize: bool | None, max_duration: float
    ) -> tuple[Speech, Frames | None]:
        """Everything before the decoder for one text: what is known of the speech so far; latents unless it failed."""
        speech = Speech(text=text if isinstance(text, str) else repr(text), sampling_rate=self.sampling_rate)
        try:
            self._check_length(text)
            encoded = self.tokenizer.encode(text, normalize=normalize)
            speech = replace(
                speech,
                normalized_text=encoded.normalized_text,
                dropped="".join(encoded.dropped),
                romanized=encoded.romanized,
            )
            return speech, self._draw_encoded(encoded, settings, max_duration)
        except (TextError, NumericsError) as error:
            return replace(speech, error=error), None

    def _check_length(self, text: Any) -> None:
        if self.tokenizer.is_uroman and isinstance(text, str) and len(text) > MAX_ROMANIZED:
            raise TextError(f"{len(text):,} characters ({text[:20]!r} …) to romanise, over {MAX_ROMANIZED:,}: {SPLIT}")

    def _draw_encoded(self, text: EncodedText, settings: Settings, max_duration: float) -> Frames:
        if len(text.normalized_text) > MAX_SYMBOLS:
            raise TextError(
                f"{len(text.normalized_text):,} symbols ({text.normalized_text[:20]!r} …); at most {MAX_SYMBOLS:,} can "
                f"be spoken at a time: {SPLIT}"
            )
        random = np.random.default_rng(settings.seed)
        num_symbols = len(text.ids)
        size = min(next_bucket(num_symbols, first=FIRST_BUCKET), 2 * MAX_SYMBOLS + 1)  # no text has more, with blanks
        ids, mask = np.zeros((1, size), np.int32), np.zeros((1, size), bool)
        noise = np.zeros((1, size, 2), np.float32)
        ids[0, :num_symbols], mask[0, :num_symbols] = text.ids, True
        noise[0, :num_symbols] = _normal(random, (num_symbols, 2), settings.noise_scale_duration)
        prior, durations = self._encode(
            self._folded, ids, mask, noise, self._speakers([settings.speaker]), np.float32(settings.speaking_rate)
        )
        durations = np.asarray(durations)[0, :num_symbols]
        self._check_durations(durations, settings.speaking_rate, max_duration)
        means, log_variances = (np.asarray(one)[0, :num_symbols] for one in (prior.means, prior.log_variances))
        counts = durations.astype(np.int64)
        means, log_variances = (np.repeat(one, counts, axis=0) for one in (means, log_variances))
        num_frames = len(means)
        z = np.zeros((1, next_bucket(num_frames, first=FIRST_BUCKET), means.shape[1]), np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is an error once it is decoded
            z[0, :num_frames] = means + _normal(random, means.shape, settings.noise_scale) * np.exp(log_variances)
        frame_mask = np.arange(z.shape[1])[None] < num_frames
        latents = self._flow(self._folded, z, frame_mask, self._speakers([settings.speaker]))
        return Frames(np.asarray(latents)[0, :num_frames], settings.speaker)

    def _check_durations(self, durations: np.ndarray, rate: float, max_duration: float) -> None:
        total = float(durations.sum())
        # Where all are 0, transformers makes one frame, of noise that no symbol had a part in: that is no speech.
        if not total > 0:
            raise NumericsError(f"the model's durations for this text add up to {total:g}; is the checkpoint whole?")
        seconds = total * self.config.hop_length / self.sampling_rate
        if seconds > max_duration:
            raise TextError(
                f"it would last {seconds:.6g} s, longer than max_duration={max_duration:g} s; split the text"
                + (f", or raise speaking_rate ({rate:g})" if rate < 1 else "")
            )

    def _render_all(self, speeches: list[Speech], frames: Sequence[Frames | None], batch_size: int) -> list[Speech]:
        """The decoder for all texts: windows of every one of them, batched by size."""
        hop = self.config.hop_length
        todo = {index: one for index, one in enumerate(frames) if one is not None}
        waveforms = {index: np.empty(len(one.latents) * hop, np.float32) for index, one in todo.items()}
        windows = [
            (index, window)
            for index, one in todo.items()
            for window in whole_windows(len(one.latents), context=self._context)
        ]
        for batch in window_batches(windows, batch_size=batch_size):
            samples = self._render([(todo[index], window) for index, window in batch])
            for (index, window), row in zip(batch, samples, strict=True):
                waveforms[index][window.start * hop : window.stop * hop] = row
        return [self._finished(speech, waveforms.get(index)) for index, speech in enumerate(speeches)]

    def _finished(self, speech: Speech, waveform: np.ndarray | None) -> Speech:
        if waveform is None:
            return speech
        if not np.isfinite(waveform).all():
            return replace(speech, error=NumericsError(f"{speech.text[:20]!r}: {self._not_finite()}"))
        return replace(speech, samples=waveform)

    def _not_finite(self) -> str:
        dtype = jnp.dtype(self._dtype).name
        remedy = "is the checkpoint whole?" if dtype == "float32" else "try float32"
        return f"the model's output is not finite in {dtype}; {remedy}"

    def _stream(self, frames: Frames) -> Iterator[np.ndarray]:
        for window in stream_windows(len(frames.latents), context=self._context):
            (samples,) = self._render([(frames, window)])
            if not np.isfinite(samples).all():
                raise NumericsError(self._not_finite())
            yield samples

    def _render(self, rows: Sequence[tuple[Frames, Window]]) -> list[np.ndarray]:
        """The samples of windows of one size, without their context."""
        size, hop = rows[0][1].size, self.config.hop_length
        latents = np.zeros((len(rows), size, self.config.flow_size), np.float32)
        frame_mask = np.zeros((len(rows), size), bool)
        for row, (frames, window) in enumerate(rows):
            there = frames.latents[max(window.first, 0) : window.first + size]
            begin = max(-window.first, 0)
            latents[row, begin : begin + len(there)] = there
            frame_mask[row, begin : begin + len(there)] = True
        speakers = self._speakers([frames.speaker for frames, _ in rows])
        samples = np.asarray(self._decode(self._folded, latents, frame_mask, speakers))
        return [
            samples[row, (window.start - window.first) * hop : (window.stop - window.first) * hop]
            for row, (_, window) in enumerate(rows)
        ]

    def _speakers(self, speakers: Sequence[int | None]) -> np.ndarray | None:
        return None if speakers[0] is None else np.array(speakers, np.int32)

    @cached_property
    def _context(self) -> int:
        return receptive_field(self.config)

    @cached_property
    def _folded(self) -> Params:
        """The parameters with everything computed once that depends on them alone, without what only training reads."""
        used = {name: part for name, part in self._params.items() if name != "posterior_encoder"}
        if jax.default_backend() == "cpu":
            prepare = jax.jit(prepare_kernels, static_argnames=("config", "dtype"))
            used["decoder"] = prepare(used["decoder"], config=self.config, dtype=self._dtype)
        return fold_weight_norm(used)

    @cached_property
    def _encode(self):
        """Jitted: symbols [1, U] to the prior's statistics and the frames of every symbol."""

        def encode(params, input_ids, attention_mask, noise, speakers, speaking_rate):
            variables = {"params": params}
            prior: Any = self.module.apply(variables, input_ids, attention_mask, noise, speakers, method="encode")
            return prior, frame_counts(prior.log_durations, attention_mask, speaking_rate)

        return jax.jit(encode)

    @cached_property
    def _flow(self):
        """Jitted: latents of the prior [1, T, C] to those of the decoder."""

        def flow(params, latents, frame_mask, speakers):
            return self.module.apply({"params": params}, latents, frame_mask, speakers, method="from_prior")

        return jax.jit(flow)

    @cached_property
    def _decode(self):
        """Jitted: latents [B, T, C] to samples [B, S]."""

        def decode(params, latents, frame_mask, speakers):
            return self.module.apply({"params": params}, latents, frame_mask, speakers, method="decode")

        return jax.jit(decode)


def _is_many(text: Any) -> bool:
    """Whether it is several texts; an open file is not: its lines would keep their ends."""
    if isinstance(text, (str, bytes, bytearray, memoryview)):
        return False
    return isinstance(text, Sequence) or (isinstance(text, Iterator) and not hasattr(text, "read"))


def _normal(random: np.random.Generator, shape: tuple[int, ...], scale: float) -> np.ndarray:
    """Drawn by numpy on the host: the same for any padding and on any device."""
    return random.standard_normal(shape, np.float32) * np.float32(scale)
