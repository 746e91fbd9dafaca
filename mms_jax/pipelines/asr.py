"""Speech recognition: load a checkpoint, transcribe audio in any of its languages."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from functools import cached_property
from os import PathLike
from typing import Any, Literal

import jax

from mms_jax.audio import SAMPLING_RATE
from mms_jax.checkpoint import (
    check_sampling_rate,
    load_ctc,
    load_processor,
    open_source,
    require,
)
from mms_jax.config import Wav2Vec2Config
from mms_jax.errors import SettingError
from mms_jax.models.trees import split_adapter, stack_layers
from mms_jax.pipelines.adapters import AdapterStore
from mms_jax.pipelines.alignment import Alignment, make_jobs
from mms_jax.pipelines.alignment_text import Stars, text_languages, texts_of
from mms_jax.pipelines.bank import ADAPTER_MEMORY, AdapterBank
from mms_jax.pipelines.chunks import CHUNK_LENGTH, make_chunking
from mms_jax.pipelines.decoding.decoding import DecodingCache
from mms_jax.pipelines.decoding.request import HOTWORD_WEIGHT, DecoderName, make_request
from mms_jax.pipelines.decoding.tuning import LM_WEIGHTS, WORD_SCORES, Metric, Trial, Tuning, check_references, tune
from mms_jax.pipelines.dtypes import WAV2VEC2_DTYPES, check_dtype
from mms_jax.pipelines.finishing import BeamSearch, Finisher, Greedy, finished
from mms_jax.pipelines.lid import LanguageIdentifier
from mms_jax.pipelines.listening import Listener
from mms_jax.pipelines.reranking import Reranker
from mms_jax.pipelines.results import one_or_all
from mms_jax.pipelines.routing import Identify
from mms_jax.pipelines.settings import check_integer

Timestamps = Literal["word", "char"] | None


def load_asr(
    model: str | PathLike[str],
    *,
    language: str | None = None,
    dtype: Any = "float32",
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | PathLike[str] | None = None,
    local_files_only: bool = False,
    scan_layers: bool | None = None,
    lid: str | PathLike[str] | LanguageIdentifier | None = None,
    adapter_memory: int = ADAPTER_MEMORY,
) -> SpeechRecognizer:
    """Load a recognition checkpoint (wav2vec2 with a CTC head, MMS adapters included).

    Args:
        model: a local directory, or a hub name such as ``facebook/mms-1b-all``.
        language: what to recognise from now on: ISO 639-1/-2/-3 code, English name, the checkpoint's own tag, or
            "auto". None leaves it to each call (a checkpoint of one language needs none).
        dtype: of matrices in memory and of matrix-product operands: "float32", "bfloat16" or "float16". Products
            accumulate in float32, and everything between them is float32. "int8": the layers' linear maps, quantised
            by output channel, activations by frame; adapters, heads and everything else in bfloat16.
        revision, token, cache_dir, local_files_only: as in huggingface_hub.
        scan_layers: True compiles one layer for all (fast to compile), False unrolls them (1.6x faster in bfloat16 on
            CPU); None chooses for the backend.
        lid: the identification model that ``language="auto"`` asks: one from ``load_lid``, or what to load it from.
        adapter_memory: bytes for the adapters of languages in use; beyond, the least recently used are read again.

    Raises:
        CheckpointError: not found, wrong or incomplete; names the file and the tensor. LanguageError: not in it.
    """
    resolved = check_dtype(dtype, WAV2VEC2_DTYPES)
    scan = jax.default_backend() != "cpu" if scan_layers is None else scan_layers
    source = open_source(model, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only)
    Wav2Vec2Config.from_file(require(source, "config.json"))  # first: another architecture has other processor files
    processor = load_processor(source)
    check_sampling_rate(processor.feature_extractor, source.name)
    config, params = load_ctc(source, dtype=resolved, stack_layers=scan)
    base, leaves = split_adapter(params)
    store = AdapterStore(source, config, processor.tokenizer, leaves if scan else stack_layers(leaves), dtype=resolved)
    bank = AdapterBank(store.read, memory=check_integer("adapter_memory", adapter_memory, 0))
    asr = SpeechRecognizer(config, processor.feature_extractor, store, bank, base, resolved, scan, lid)
    if language is not None:
        asr.load_adapter(language)
    return asr


class SpeechRecognizer(Listener):
    """A loaded recognition model; made by ``load_asr``."""

    @cached_property
    def _decoders(self) -> DecodingCache:
        return DecodingCache(resolve=self._store.resolve, alphabet=self._bank.alphabet)

    def transcribe(
        self,
        audio: Any,
        *,
        language: str | Sequence[str] | None = None,
        candidates: Iterable[str] | None = None,
        rerank: int = 1,
        timestamps: Timestamps = None,
        lm: str | PathLike[str] | Mapping[str, Any] | None = None,
        lexicon: Any = None,
        beam: int | None = None,
        lm_weight: float | None = None,
        word_score: float | None = None,
        hotwords: Iterable[str] | Mapping[str, Iterable[str]] | None = None,
        hotword_weight: float = HOTWORD_WEIGHT,
        num_best: int = 1,
        decoder: DecoderName | None = None,
        batch_size: int = 8,
        chunk_length_s: float = CHUNK_LENGTH,
        stride_length_s: float | tuple[float, float] | None = None,
        max_duration: float = math.inf,
        progress: bool | None = None,
    ) -> Any:
        """Recognise speech in any mix of languages and lengths, by greedy CTC decoding or a beam search.

        Any of ``lm``, ``lexicon``, ``beam``, ``hotwords``, ``num_best`` and ``decoder`` asks for a beam search.

        Args:
            audio: a path, bytes, a binary file object, a float array at 16 kHz, (array, rate), a ``datasets`` audio
                value, or a list of these.
            language: one for all items, or a list with one for each; "auto" identifies it (by the first window that is
                not silent); default the one chosen by ``load_asr`` or ``load_adapter``.
            candidates: with "auto", the only languages to consider.
            rerank: with "auto", recognise this many of the likeliest languages too and choose by both
                (``language_ranking`` tells how); 1: by identification alone.
            timestamps: "word" or "char" to have ``words``, ``chars`` and ``segments`` too.
            lm: an n-gram language model: an ARPA file, a KenLM binary, or a directory that a transformers processor
                with a language model wrote; of letters (a word's end is "|") or of words, which are the lexicon then.
                {language: one or None} where there are several languages.
            lexicon: the only words that can be found: a file with "word" or "word  t o k e n s |" on each line, a list
                of words, or {word: tokens}; {language: one} where ``lm`` has languages.
            beam: hypotheses that are kept (100).
            lm_weight: of the language model's log10 probabilities; default that stored with it, or 2.
            word_score: added for every word; default that stored with it, or 0.
            hotwords: phrases to be favoured, or {language: phrases}.
            hotword_weight: added for each of them, whole and between word boundaries.
            num_best: how many ``alternatives`` to return.
            decoder: "flashlight" (default), in processes of its own on the CPU; or "device", in JAX where the model
                runs: for language models of letters, without a lexicon.
            batch_size: most windows in one forward pass.
            chunk_length_s: audio up to this many seconds is recognised in one pass, longer audio in windows of it.
            stride_length_s: of a window, context on each side, or (left, right); None: a sixth of it.
            max_duration: longest item, seconds; what is longer is an error.
            progress: whether to show a bar on stderr after three seconds; None: where that is a terminal.

        Returns:
            A ``Transcription``, or for a list a list of them in order. Audio of less than one frame (25 ms) and digital
            silence (samples within two steps of 16-bit audio of each other) give the text "".

            Memory does not depend on the length of the audio: samples of at most 4 x ``batch_size`` whole windows are
            held (61 MB), and ``MAX_DURATION`` seconds of padded audio go through the model at a time. A beam search
            holds a recording's logits too until it is searched, 50 times the vocabulary's size in float32 a second.

        Raises:
            LanguageError: a language that is not here, where it is to be that of all items; lists of different lengths.
            LanguageModelError: one that is damaged, or of another alphabet than the language's; shows the difference.
            AudioError: a single item that cannot be used. NumericsError: the model's output for it is not finite. In a
                list its ``Transcription`` carries the error instead (also that of a language in a list), and the others
                are what they would be without it.
        """
        if timestamps not in (None, "word", "char"):
            raise SettingError(f"timestamps is {timestamps!r}; it must be 'word', 'char' or None")
        request = make_request(
            lm=lm,
            lexicon=lexicon,
            beam=beam,
            lm_weight=lm_weight,
            word_score=word_score,
            hotwords=hotwords,
            hotword_weight=hotword_weight,
            num_best=num_best,
            decoder=decoder,
        )
        items, recordings, many = self._recordings(audio, language)
        chunking = make_chunking(self._config, chunk_length_s=chunk_length_s, stride_length_s=stride_length_s)
        router = self._router(recordings, candidates)
        hop = self._config.samples_per_frame / SAMPLING_RATE
        decoding = None
        if request is None:
            finisher: Finisher = Greedy(timestamps=timestamps, seconds_per_frame=hop)
        else:
            known = [one.tag for one in recordings if not one.undecided and one.error is None]
            decoding = self._decoders.get(request, known, some_unknown=any(one.undecided for one in recordings))
            finisher = BeamSearch(decoding, request, timestamps=timestamps, seconds_per_frame=hop)
        top_k = check_integer("rerank", rerank, 1)
        identify: Identify | None = router
        if router is not None and top_k > 1:
            identify = Reranker(
                router, self._recognition, self._config, top_k=top_k, decoding=decoding, request=request
            )
        reader = self._reader(
            chunking, batch_size, max_duration, detail=finisher.detail, router=identify, progress=progress
        )
        with closing(reader.read(items, recordings, many=many)) as complete:
            results = finished(complete, recordings, finisher)
        return one_or_all(results, many=many)

    def tune_lm(
        self,
        audio: Sequence[Any],
        transcripts: Sequence[str],
        *,
        lm: str | PathLike[str],
        language: str | None = None,
        lexicon: Any = None,
        beam: int | None = None,
        lm_weights: Sequence[float] = LM_WEIGHTS,
        word_scores: Sequence[float] = WORD_SCORES,
        metric: Metric = "wer",
        decoder: DecoderName | None = None,
        batch_size: int = 8,
        told: Callable[[Trial], None] = lambda trial: None,
    ) -> Tuning:
        """Find the weights of a language model that make the fewest errors, on clips that are not those to be tested.

        The model hears the clips once; only the beam search runs for each pair of weights.

        Args:
            audio: a list of what ``transcribe`` takes, all of one language.
            transcripts: what is said in each.
            lm, language, lexicon, beam, batch_size: as in ``transcribe``.
            decoder: likewise; default "device" where it can be, which is many times as fast where words are scored.
            lm_weights, word_scores: to try, each with each.
            metric: to be least: "wer" or "cer".
            told: called after each trial.

        Returns:
            A ``Tuning``: its ``best`` has lm_weight and word_score, and printing it shows the table.
        """
        if isinstance(audio, str) or isinstance(transcripts, str):
            raise SettingError("audio and transcripts are those of several clips; give lists")
        items, references = list(audio), list(transcripts)
        if len(items) != len(references):
            raise SettingError(f"{len(items)} item(s), but {len(references)} transcript(s); give one for each")
        heard = self.logits(items, language=language, batch_size=batch_size)
        tag = self._tag(language)
        check_references(references, self._bank.alphabet(tag).vocabulary)
        if decoder is None:
            asked = make_request(lm=lm, lexicon=lexicon)
            assert asked is not None  # it has a language model
            decoder = self._decoders.fastest(asked, tag)

        def texts_at(lm_weight: float, word_score: float) -> list[str]:
            request = make_request(
                lm=lm, lexicon=lexicon, beam=beam, lm_weight=lm_weight, word_score=word_score, decoder=decoder
            )
            assert request is not None  # it has a language model
            decoding = self._decoders.get(request, [tag], some_unknown=False)
            searches = [decoding.search(tag, logits, request) if len(logits) else None for logits in heard]
            return ["" if search is None else search.wait().alternatives[0].text for search in searches]

        return tune(texts_at, references, lm_weights=lm_weights, word_scores=word_scores, metric=metric, told=told)

    def align(
        self,
        audio: Any,
        text: Any,
        *,
        language: str | Sequence[str] | None = None,
        star: Stars | None = None,
        romanize: bool | None = None,
        batch_size: int = 8,
        chunk_length_s: float = CHUNK_LENGTH,
        stride_length_s: float | tuple[float, float] | None = None,
        max_duration: float = math.inf,
        progress: bool | None = None,
    ) -> Any:
        """Find when each word of a known text is said.

        Args:
            audio: as in ``transcribe``.
            text: what is said in it, a segment on each line, or a list of segments; of several items a list of texts.
                A word ``<star>`` stands for any speech. Numbers, punctuation and notes in brackets are not aligned.
            language: of the audio and its text; one of this checkpoint's. Of a checkpoint without languages: any, for
                normalising and romanising the text.
            star: "start" allows for speech before the text, "segments" before, between and behind its segments too.
            romanize: whether the checkpoint was trained on romanised text, as the multilingual aligner was; None: where
                it has no languages and no letters but a to z.
            batch_size, chunk_length_s, stride_length_s, max_duration, progress: as in ``transcribe``.

        Returns:
            An ``Alignment``, or for a list a list of them in order.

        Raises:
            AlignmentError: no text, of other letters than the language's, or more than fits into the audio.
            LanguageError, AudioError, NumericsError: as ``transcribe``; in a list the ``Alignment`` carries the error.
        """
        items, recordings, many = self._recordings(audio, language if self.languages else None)
        texts = texts_of(text, len(items), many=many)
        spoken = text_languages(None if self.languages else language, len(items))
        chunking = make_chunking(self._config, chunk_length_s=chunk_length_s, stride_length_s=stride_length_s)
        reader = self._reader(chunking, batch_size, max_duration, detail="logits", progress=progress)
        jobs = make_jobs(
            recordings, texts, alphabet=self._bank.alphabet, languages=spoken, romanize=romanize, star=star
        )
        hop = self._config.samples_per_frame / SAMPLING_RATE
        results: dict[int, Alignment] = {}
        with closing(reader.read(items, recordings, many=many)) as complete:
            for index in complete:
                results[index] = jobs[index].result(seconds_per_frame=hop)
        return one_or_all(
            [results.get(index) or job.result(seconds_per_frame=hop) for index, job in enumerate(jobs)], many=many
        )
