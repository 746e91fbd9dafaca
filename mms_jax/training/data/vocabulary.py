"""Vocabularies made of transcripts, and the tokenizers that hold them. Nothing here reads or writes a file.

The CTC blank is the padding token, and a directory of adapters has one ``pad_token_id`` for all its languages. So a
vocabulary that is made for an adapter has the special tokens at the ids they have elsewhere in that directory, or in
the checkpoint it starts from: in MMS, the first five. A model that is trained as a whole has one vocabulary; it is laid
out as the examples of transformers do, special tokens last.
"""

from collections.abc import Iterable, Mapping
from itertools import count
from typing import Any

from mms_jax.errors import DatasetError, VocabularyError
from mms_jax.text.ctc import STANDARD_TOKENS, CTCTokenizer

__all__ = ["build_vocabulary", "make_language_tokenizer", "make_tokenizer"]

ROLES = ("pad_token", "bos_token", "eos_token", "unk_token", "word_delimiter_token")  # in MMS, the ids 0 to 4
DEFAULTS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "word_delimiter_token": "|"}  # the examples' own
UNUSED = "<unused{}>"  # fills ids below those of special tokens, where there are too few characters
OF_ONE_LANGUAGE = ("added_tokens_decoder", "target_lang")  # in a tokenizer's settings; the rest holds for any


def build_vocabulary(
    texts: Iterable[str],
    *,
    pad_token: str = "[PAD]",
    unk_token: str = "[UNK]",
    word_delimiter_token: str = "|",
    special: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Give every character of cleaned transcripts an id, and the special tokens theirs.

    Without ``special``: sorted characters, of which the space is ``word_delimiter_token``, then ``unk_token`` and
    ``pad_token``. With ``special`` ({token: id}): those keep their ids, and the sorted characters
    have the others, in order; where characters are too few to fill the gaps, "<unused0>" and so on do.

    Raises ``DatasetError`` if the texts hold no character, ``VocabularyError`` if a special token is one of theirs: the
    two could not be told apart. The word delimiter may be, its character then separates words like a space.
    """
    chars = set().union(*texts) - {" ", word_delimiter_token}
    if not chars:
        raise DatasetError("the transcripts hold no characters to make a vocabulary of; see --text_column_name")
    fixed = {unk_token, pad_token} if special is None else special.keys()
    if taken := sorted(chars & fixed - {word_delimiter_token}):
        raise VocabularyError(
            f"{taken[0]!r} is a special token and also in the transcripts; add it to --chars_to_ignore, or choose "
            "another --pad_token or --unk_token"
        )
    if special is None:
        tokens = [*sorted(chars | {" "}), unk_token, pad_token]
        return {word_delimiter_token if token == " " else token: id_ for id_, token in enumerate(tokens)}
    return _fill(special, sorted(chars))


def _fill(special: Mapping[str, int], chars: list[str]) -> dict[str, int]:
    owners = {id_: token for token, id_ in special.items()}
    free = (id_ for id_ in count() if id_ not in owners)
    owners |= dict(zip(free, chars, strict=False))  # not strict: ids go on without end
    gaps = [id_ for id_ in range(max(owners)) if id_ not in owners]
    owners |= {id_: UNUSED.format(number) for number, id_ in enumerate(gaps)}
    return {owners[id_]: id_ for id_ in sorted(owners)}


def make_language_tokenizer(
    language: str,
    texts: Iterable[str],
    *,
    pad_token_id: int,
    base: CTCTokenizer | None = None,
    existing: CTCTokenizer | None = None,
    given: CTCTokenizer | None = None,
    overwrite: bool = False,
    **tokens: str | None,
) -> CTCTokenizer:
    """The tokenizer of an output directory of adapters, with ``language`` in it; all other languages stay as they are.

    The vocabulary is that of ``given`` (--tokenizer_name_or_path) if that has the language, else the one that the
    directory has already (``existing``), else one made of ``texts`` (cleaned); with ``overwrite``
    (--overwrite_lang_vocab) always the last. A new one has its blank at ``pad_token_id``, the model's, and the special
    tokens of ``existing``, of ``given`` or of ``base``, the checkpoint's own tokenizer, whichever there is first.
    ``tokens`` (pad_token, unk_token, word_delimiter_token) rename them, where no language is there yet.

    Raises ``VocabularyError`` if the directory has another vocabulary for the language than ``given``, if ``existing``
    is flat, or if it has other special tokens than ``tokens``; ``DatasetError`` if a vocabulary has to be made of
    transcripts that hold no character.
    """
    chosen = {key: value for key, value in tokens.items() if value is not None}
    if existing is not None:
        _check_same(existing, chosen)
    vocab = None if overwrite else _known_vocabulary(language, existing, given)
    pattern = existing or given or base
    config = _settings(pattern, chosen)
    if vocab is None:
        vocab = _new_vocabulary(texts, pattern, config, pad_token_id)
    if existing is not None:
        return existing.with_language(language, vocab, overwrite=True)
    return CTCTokenizer({language: dict(vocab)}, config | {"target_lang": language}, source=f"vocabulary of {language}")


def _known_vocabulary(
    language: str, existing: CTCTokenizer | None, given: CTCTokenizer | None
) -> Mapping[str, int] | None:
    own, asked = _of(existing, language), _of(given, language)
    if existing and given and own and asked and own != asked:
        raise VocabularyError(
            f"{existing.source}: has another vocabulary for {language!r} than {given.source}; choose another output "
            "directory, or make a new vocabulary from the data (--overwrite_lang_vocab)"
        )
    return asked or own


def _of(tokenizer: CTCTokenizer | None, language: str) -> dict[str, int] | None:
    return dict(tokenizer.vocab[language]) if tokenizer is not None and language in tokenizer.languages else None


def make_tokenizer(texts: Iterable[str], **tokens: str | None) -> CTCTokenizer:
    """A flat tokenizer made of cleaned transcripts, for a model that is trained as a whole.

    ``tokens``: pad_token, unk_token and word_delimiter_token, where they are not the examples' own [PAD], [UNK] and |.
    """
    config = DEFAULTS | {key: value for key, value in tokens.items() if value is not None}
    pad, unk, delimiter = (config[key] for key in DEFAULTS)
    vocab = build_vocabulary(texts, pad_token=pad, unk_token=unk, word_delimiter_token=delimiter)
    return CTCTokenizer(vocab, config)


def _settings(pattern: CTCTokenizer | None, chosen: Mapping[str, str]) -> dict[str, Any]:
    """A tokenizer_config.json: the pattern's, less what is its languages' own."""
    if pattern is None:
        return DEFAULTS | dict(chosen)
    return {key: value for key, value in pattern.config.items() if key not in OF_ONE_LANGUAGE} | dict(chosen)


def _check_same(existing: CTCTokenizer, chosen: Mapping[str, str]) -> None:
    for key, token in chosen.items():
        if (there := _token(existing.config, key)) != token:
            raise VocabularyError(
                f"{existing.source}: its languages have the {key} {there!r}, so a new one cannot have {token!r}; leave "
                f"--{key} out, or choose another output directory"
            )


def _new_vocabulary(
    texts: Iterable[str], pattern: CTCTokenizer | None, config: Mapping[str, Any], pad_token_id: int
) -> dict[str, int]:
    names = {role: _token(config, role) for role in ROLES}
    special = {str(names[role]): id_ for role, id_ in _special_ids(pattern, pad_token_id).items()}
    if config.get("do_lower_case"):  # such a tokenizer's letters are upper-case: it encodes text.upper()
        texts = (text.upper() for text in texts)
    pad, unk, delimiter = (str(names[role]) for role in DEFAULTS)
    return build_vocabulary(texts, pad_token=pad, unk_token=unk, word_delimiter_token=delimiter, special=special)


def _special_ids(pattern: CTCTokenizer | None, pad_token_id: int) -> dict[str, int]:
    """The id of each kind of special token: as in a language of ``pattern``, with the blank at ``pad_token_id``."""
    ids = {role: id_ for id_, role in enumerate(ROLES)} if pattern is None else _ids_in(pattern)
    former = ids.pop("pad_token", pad_token_id)
    moved = next((role for role, id_ in ids.items() if id_ == pad_token_id), None)
    if moved is not None:
        ids[moved] = former
    ids["pad_token"] = pad_token_id
    for role in DEFAULTS:
        ids.setdefault(role, next(id_ for id_ in count() if id_ not in ids.values()))
    return ids


def _ids_in(pattern: CTCTokenizer) -> dict[str, int]:
    languages = pattern.languages
    language = pattern.target_lang if pattern.target_lang in languages or not languages else languages[0]
    tokens = pattern.vocabulary(language).tokens
    names = {role: _token(pattern.config, role) for role in ROLES}
    return {role: tokens[name] for role, name in names.items() if name is not None and name in tokens}


def _token(config: Mapping[str, Any], key: str) -> str | None:
    """The text of a special token in a tokenizer_config.json, where it may be an added token's JSON."""
    value = config.get(key, STANDARD_TOKENS[key])
    return value["content"] if isinstance(value, Mapping) else value
