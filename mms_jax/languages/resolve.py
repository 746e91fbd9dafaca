"""From what a user wrote to tags: the one that is meant, or all that match."""

from collections.abc import Collection

from mms_jax.errors import LanguageError
from mms_jax.languages.suggest import absent, listed
from mms_jax.languages.table import MAX_CHARS, TASKS, plain, quoted, require, words
from mms_jax.languages.tags import candidates, fitting, is_member, language_name, meant, parse


def resolve_language(
    language: str, available: Collection[str], *, source: str = "this checkpoint", task: str | None = None
) -> str:
    """Return the tag in ``available`` for ``language``: an ISO 639 code, a BCP 47 tag, an English name or a full tag.

    Raises LanguageError if it is unknown, not available, or means several of the available ones (scripts or dialects of
    one language, members of a macrolanguage). It names ``source``, the nearest tags and, given the ``task`` ("asr",
    "tts", "lid") of that checkpoint, where else MMS covers the language.
    """
    asked = _check(language, task)
    if language in available:
        return language
    if len(asked) > MAX_CHARS:
        raise LanguageError(absent(asked, available, source=source, task=task))
    codes = meant(asked)
    if len(codes) > 1:  # even if only one of them is available, the other may be meant
        raise LanguageError(f"{quoted(asked)} is several languages: {listed(sorted(codes))}; pass a code in lower case")
    same = plain(asked)
    found = [tag for tag in available if plain(tag) == same]
    for code in codes if not found else ():
        found = candidates(asked, code, available)
    if len(found) == 1:
        return found[0]
    if found:
        raise LanguageError(f"{quoted(asked)} is ambiguous in {source}: pass one of {listed(sorted(found))}")
    raise LanguageError(absent(asked, available, source=source, task=task))


def find_languages(
    asked: str, available: Collection[str], *, source: str = "the published checkpoints", task: str | None = None
) -> list[str]:
    """Return every available tag that ``asked`` may mean, in their order: by code, macrolanguage or words of a name.

    Raises LanguageError, as ``resolve_language`` does, if there is none.
    """
    wanted = _check(asked, task)
    if len(wanted) > MAX_CHARS:
        raise LanguageError(absent(wanted, available, source=source, task=task))
    codes, parsed, same, said = meant(wanted), parse(wanted), plain(wanted), set(words(wanted))
    family = [tag for tag in available if is_member(tag, codes)]
    found = {*(fitting(family, parsed) if parsed and parsed.code in codes else family)}
    found |= {tag for tag in available if plain(tag) == same or (said and said <= {*words(language_name(tag) or "")})}
    if not found:
        raise LanguageError(absent(wanted, available, source=source, task=task))
    return [tag for tag in available if tag in found]


def _check(language: object, task: str | None) -> str:
    if task is not None:
        require(task, TASKS, what="task")
    if not isinstance(language, str) or not language.strip():
        raise LanguageError(f"a language must be a code, tag or name, got {quoted(language)}")
    return language.strip()
