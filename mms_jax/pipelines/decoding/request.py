"""What a caller asks of the beam search, checked, and what each language is searched with."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mms_jax.errors import LanguageModelError, SettingError
from mms_jax.pipelines.adapters import Tag
from mms_jax.pipelines.decoding.files import FOLDER, LanguageModel, Lexicon, open_language_model, read_lexicon
from mms_jax.pipelines.settings import check_integer, check_number

Resolve = Callable[[str], Tag]  # a language as users write it, to a tag
DecoderName = Literal["flashlight", "device"]
DECODERS = ("flashlight", "device")
BEAM = 100  # hypotheses kept, as in pyctcdecode; fairseq's published figures take 500
MAX_BEAM = 100_000  # results have long been the same, and memory is short
MAX_DEVICE_BEAM = 4096  # all of it is there in every frame, for each row of a batch
LM_WEIGHT = 2.0  # of log10 probabilities; fairseq's colab takes 2.69 for English
WORD_SCORE = 0.0
HOTWORD_WEIGHT = 10.0  # of a phrase, as in pyctcdecode


@dataclass(frozen=True)
class Materials:
    """What one language is searched with."""

    lm: LanguageModel | None = None
    lexicon: Lexicon | None = None
    hotwords: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """A beam search as it was asked for."""

    lm: Any = None  # a path, or {language: path}
    lexicon: Any = None  # what ``read_lexicon`` takes, or {language: …} where lm is one
    hotwords: Any = ()  # phrases, or {language: phrases}
    beam: int = BEAM
    lm_weight: float | None = None  # None: that stored with the language model, or LM_WEIGHT
    word_score: float | None = None
    hotword_weight: float = HOTWORD_WEIGHT
    num_best: int = 1
    decoder: DecoderName = "flashlight"

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for requests that can share their decoders: those of the same files, unchanged, and phrases."""
        return _key(self.lm), _key(self.lexicon), _key(self.hotwords), self.decoder

    def materials(self, tags: Iterable[Tag], resolve: Resolve) -> dict[Tag, Materials]:
        """What each of the languages is searched with.

        Args:
            tags: languages that may be heard.
            resolve: a language as users write it to a tag.

        Raises:
            LanguageModelError: not readable; one language model for several languages; none named for a language.
        """
        heard = list(dict.fromkeys(tags))
        if not isinstance(self.lm, Mapping):
            if self.lm is not None and len(heard) > 1:
                raise LanguageModelError(
                    f"{self.lm}: one language model for {len(heard)} languages; give one each: "
                    "lm={'eng': 'eng.arpa', 'deu': 'deu.arpa'}, None for those that need none"
                )
            shared = None if self.lm is None else open_language_model(self.lm)
            lexicon = None if self.lexicon is None else read_lexicon(self.lexicon)
            return {tag: Materials(shared, lexicon, self._phrases(tag, resolve)) for tag in heard}
        models = _by_tag(self.lm, resolve, name="lm")
        lexicons = {} if self.lexicon is None else _by_tag(self.lexicon, resolve, name="lexicon")
        found = {}
        for tag in heard:
            if not models:
                raise LanguageModelError(f"lm is an empty mapping; give {{{tag!r}: file}}, or one file")
            if tag not in models:
                raise LanguageModelError(
                    f"lm has no entry for {tag!r}, only for {', '.join(map(repr, models))}; "
                    f"add one, or None ({tag}= on the command line) to search it without"
                )
            model = models[tag]
            lexicon = lexicons.get(tag)
            found[tag] = Materials(
                None if model is None else open_language_model(model),
                None if lexicon is None else read_lexicon(lexicon),
                self._phrases(tag, resolve),
            )
        return found

    def _phrases(self, tag: Tag, resolve: Resolve) -> tuple[str, ...]:
        phrases = self.hotwords
        if isinstance(phrases, Mapping):
            phrases = _by_tag(phrases, resolve, name="hotwords").get(tag, ())
        if isinstance(phrases, str) or not isinstance(phrases, Iterable):
            raise SettingError(f"hotwords is {phrases!r}; give a list of phrases")
        return tuple(dict.fromkeys(phrases))


def make_request(
    *,
    lm: Any = None,
    lexicon: Any = None,
    beam: int | None = None,
    lm_weight: float | None = None,
    word_score: float | None = None,
    hotwords: Any = None,
    hotword_weight: float = HOTWORD_WEIGHT,
    num_best: int = 1,
    decoder: str | None = None,
) -> Request | None:
    """The beam search that these arguments of ``transcribe`` ask for; None: greedy decoding.

    Raises:
        SettingError: out of range, or of no effect.
    """
    check_integer("num_best", num_best, 1)
    phrases = () if hotwords is None else _kept(hotwords)
    wanted = any(one is not None for one in (lm, lexicon, beam, decoder)) or num_best > 1 or bool(phrases)
    if not wanted:
        if (lm_weight, word_score) != (None, None):
            raise SettingError("lm_weight and word_score are those of a beam search; give lm=, or beam=")
        return None
    if decoder not in (None, *DECODERS):
        raise SettingError(f"decoder is {decoder!r}; it must be one of {', '.join(map(repr, DECODERS))}")
    size = BEAM if beam is None else check_integer("beam", beam, 1)
    most = MAX_DEVICE_BEAM if decoder == "device" else MAX_BEAM
    if size > most:
        raise SettingError(f"beam is {size}; it may be {most} at most")
    if num_best > size:
        raise SettingError(f"num_best={num_best} is more than the beam holds, {size}")
    return Request(
        lm=lm,
        lexicon=_kept(lexicon),
        hotwords=phrases,
        beam=size,
        lm_weight=None if lm_weight is None else check_number("lm_weight", lm_weight, 0, 1000),
        word_score=None if word_score is None else check_number("word_score", word_score, -1000, 1000),
        hotword_weight=check_number("hotword_weight", hotword_weight, -1000, 1000),
        num_best=num_best,
        decoder="device" if decoder == "device" else "flashlight",
    )


def _by_tag(values: Any, resolve: Resolve, *, name: str) -> dict[Tag, Any]:
    if not isinstance(values, Mapping):
        raise SettingError(f"{name} must be {{language: …}} where lm is, got {type(values).__name__}")
    return {resolve(language): value for language, value in values.items()}


def _kept(value: Any) -> Any:
    """A list as it is now; files and mappings as they are."""
    if value is None or isinstance(value, str | os.PathLike | Mapping) or not isinstance(value, Iterable):
        return value
    return tuple(value)


def _key(value: Any) -> Any:
    """Something hashable that changes when a file's contents may have."""
    if isinstance(value, str | os.PathLike):
        path = Path(value)
        files = sorted([*path.glob("*"), *path.glob(f"{FOLDER}/*")]) if path.is_dir() else [path]
        return str(path), *((str(file), *_stamp(file)) for file in files)
    if isinstance(value, Mapping):
        return tuple((key, _key(one)) for key, one in value.items())
    return tuple(value) if isinstance(value, list) else value


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return 0, 0  # who opens it says what is wrong
    return status.st_mtime_ns, status.st_size
