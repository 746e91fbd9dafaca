"""What to say of a language that is not there: the nearest tags, and which published checkpoints cover it."""

from collections.abc import Collection, Iterable
from difflib import SequenceMatcher

from mms_jax.languages.table import CHECKPOINTS, MAX_CHARS, TASKS, codes, languages, plain, published, quoted, words
from mms_jax.languages.tags import (
    ALWAYS,
    PREDOMINANT,
    candidates,
    canonical,
    code_of,
    language_name,
    meant,
    parse,
    subtags,
)

NOUNS = {"asr": "recognition", "tts": "synthesis", "lid": "identification"}
VERBS = {"asr": "recognises", "lid": "identifies"}
PARTS = {"asr": "adapter", "tts": "voice", "lid": "label"}  # what a checkpoint has for a language

MIN_SIMILARITY = 0.6  # below this a name has little in common with what was asked for
RELATED = 2.0  # the likeness of a macrolanguage and its members
SHOWN = 12  # candidates in one message
SHOWN_ELSEWHERE = 3  # tags of another checkpoint in one message


def nearest(language: str, available: Collection[str], *, limit: int = 5) -> list[str]:
    """Return up to ``limit`` available tags most like ``language``, best first; none where nothing is alike.

    The same language in another script comes first, then its macrolanguage and that one's other members; only where
    there are none of these, languages with a similar name or, for an unknown code or tag, a similar code.
    """
    wanted = language.strip()[:MAX_CHARS]
    wanted_codes = meant(wanted) or frozenset(filter(None, [canonical(subtags(wanted)[0])]))
    known = [codes().name_of[code] for code in wanted_codes if code in codes().name_of]
    names = [words(name) for name in known] or [words(wanted)]
    typed = "" if known else plain(wanted)
    scored = [(_likeness(tag, wanted=wanted_codes, names=names, typed=typed), tag) for tag in available]
    least = RELATED if any(score >= RELATED for score, _ in scored) else MIN_SIMILARITY
    best = sorted((-score, not _is_major(tag), tag) for score, tag in scored if score >= least)
    return [tag for _, _, tag in best[:limit]]


def _likeness(tag: str, *, wanted: Collection[str], names: Iterable[tuple[str, ...]], typed: str) -> float:
    """Return 3 for the same language, RELATED or more in its macrolanguage, else how alike names or codes are, to 1."""
    code, macro_of = code_of(tag), codes().macro_of
    if code in wanted:
        return 3.0
    families = {macro_of.get(one, one) for one in wanted}
    if macro_of.get(code, code) in families:
        return RELATED + 0.5 * (code in PREDOMINANT.values())
    own = words(language_name(tag) or "")
    alike = [_similarity(" ".join(own), " ".join(name)) for name in names if own]
    contained = [0.9 for name in names if name and set(name) <= set(own)]
    return max([*alike, *contained, _similarity(plain(tag), typed)])


def _similarity(one: str, other: str) -> float:
    matcher = SequenceMatcher(None, one, other)
    return matcher.ratio() if one and other and matcher.quick_ratio() >= MIN_SIMILARITY else 0.0


def _is_major(tag: str) -> bool:
    """Whether the language has a two-letter code: of two equally alike ones it is likelier to be meant."""
    return tag in published() and published()[tag].iso639_1 is not None


def absent(language: str, available: Collection[str], *, source: str, task: str | None) -> str:
    """Say that ``source``, which does ``task``, lacks a language, and what there is instead."""
    short = language if len(language) <= MAX_CHARS else ""
    name = language_name(short)
    meaning = "" if name is None or words(name) == words(short) else f" ({name})"
    lacking = "is not available" if task is None else f"has no {PARTS[task]}"
    parts = [f"{quoted(language)}{meaning} {lacking} in {source}"]
    if task is not None and (hint := elsewhere(short, task=task, source=source)):
        parts.append(hint)
    alike = nearest(language, available)
    if alike:
        parts.append(f"nearest: {listed(alike)}")
    if not alike and 0 < len(available) <= SHOWN:
        parts.append(f"available: {listed(sorted(available))}")
    else:
        listing = "mms-jax languages" if task is None else f"mms-jax languages --model {source}"
        parts.append(f"{len(available):,} language{'s' * (len(available) != 1)} available: {listing}")
    return "; ".join(parts)


def elsewhere(asked: str, *, task: str, source: str = "") -> str:
    """Say which published checkpoint of ``task``, other than ``source``, covers a language, or else what others do.

    For example "mms-1b-all recognises it as kor", "no synthesis for cmn; recognition exists as cmn-script_simplified";
    empty if there are none, or ``asked`` may mean several languages.
    """
    wanted = meant(asked)
    if len(wanted) != 1:
        return ""
    (code,) = wanted
    tags = {one: candidates(asked, code, [language.code for language in languages(task=one)]) for one in TASKS}
    if tags[task]:
        return _same_task(tags[task], task, source.rpartition("/")[2].split("@")[0].split(" ")[0])
    found = [_exists(one, its) for one, its in tags.items() if its]
    return "; ".join([_lacking(asked, code, task), *found]) if found else ""


def _same_task(tags: list[str], task: str, name: str) -> str:
    """Where the task's checkpoints, other than the one of that name, have the tags."""
    if task == "tts":  # a checkpoint per language
        others = [tag for tag in tags if f"mms-tts-{tag}" != name]
        return _exists(task, others) if others else ""
    for other in CHECKPOINTS:
        its = [tag for tag in tags if other in published()[tag].checkpoints(task)]
        if its and other != name:
            return f"{other} {VERBS[task]} it as {_some(its)}"
    return ""


def _exists(task: str, tags: list[str]) -> str:
    return f"{NOUNS[task]} exists as {_some([f'mms-tts-{tag}' for tag in tags] if task == 'tts' else tags)}"


def _lacking(asked: str, code: str, task: str) -> str:
    parsed = parse(asked)
    stated = parsed is not None and (parsed.script, parsed.dialect) != (None, None)
    usual = PREDOMINANT[code] if code in ALWAYS else code
    cells = [
        getattr(its, column) for its in published().values() if code_of(its.code) == usual for column in TASKS[task]
    ]
    return f"no {'known ' if None in cells else ''}{NOUNS[task]} for {quoted(asked) if stated else usual}"


def listed(tags: Collection[str]) -> str:
    """The first of some tags, with their names."""
    shown = [f"{_shown(tag)} ({name})" if (name := language_name(tag)) else _shown(tag) for tag in [*tags][:SHOWN]]
    return ", ".join(shown) + (f" and {len(tags) - SHOWN} more" if len(tags) > SHOWN else "")


def _some(tags: list[str]) -> str:
    rest = len(tags) - SHOWN_ELSEWHERE
    return ", ".join(tags[:SHOWN_ELSEWHERE]) + (f" and {rest} more" if rest > 0 else "")


def _shown(tag: str) -> str:
    """A tag of a user's own making may be anything."""
    return tag if tag.isprintable() and len(tag) <= MAX_CHARS else quoted(tag)
