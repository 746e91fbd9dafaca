"""Any script into Latin letters by the ``uroman`` package, for the checkpoints that were trained on such text."""

import gc
import threading
from functools import lru_cache
from typing import Any

from mms_jax.errors import TextError
from mms_jax.text.vocabulary import shown

# The languages whose published synthesis checkpoints read romanised text (MMS paper, section 7.2, footnote 30).
ROMANIZED_LANGUAGES = frozenset({"amh", "guk", "kor", "sgw", "tir"})

# uroman goes on without a table that it cannot open, and half the letters then stay as they are. Each of these words
# needs another of its tables.
_PROBE, _PROBE_ROMANIZED = "ሰላም नमस्ते привет 中国 二十三 བོད་", "salaame namaste privet zhongguo 23 bod·"
_REINSTALL = "reinstall it: pip install --force-reinstall 'uroman>=1.3.1'"
_FAULTS = (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError)

_LOCK = threading.Lock()  # uroman's tables are filled on reading them too, so it must not run in two threads at once


def romanize(text: str, *, language: str | None = None) -> str:
    """Return ``text`` in Latin letters as uroman spells it; what uroman does not know stays as it is.

    ``language`` is an ISO 639-3 code or a tag that starts with one. transformers names none, and Meta's own inference
    script an unknown one ("xxx"), so the result differs from theirs for the languages that uroman has rules for: bel,
    bul, deu, ell, eng, fas, kaz, kir, lav, mkd, rus, srp, tur, uig, ukr and a few more ("Игорь" is Igor, in Ukrainian
    Yhor). It has none for ``ROMANIZED_LANGUAGES``.

    The first call takes 2 s, which is uroman reading its tables. Safe to call from many threads.
    Raises TextError if uroman is missing or damaged, or fails on this text, as it does on an unfinished "三分之".
    """
    code = None if language is None else language.split("-")[0]
    with _LOCK:
        uroman = _uroman()
        try:
            return uroman.romanize_string(text, lcode=code)
        except _FAULTS as cause:
            raise TextError(
                f"{shown(text)}: uroman fails on it ({type(cause).__name__}: {cause}); "
                "write numbers and fractions in words, or pass text in Latin letters"
            ) from cause


@lru_cache(maxsize=1)
def _uroman() -> Any:
    """Return the one instance of this process."""
    try:
        from uroman import Uroman  # late: nearly all checkpoints do without it
    except ImportError as cause:
        raise TextError(
            f"this checkpoint reads romanised text, which needs the package uroman ({cause}): pip install uroman"
        ) from cause
    collecting = gc.isenabled()
    try:
        instance = Uroman()
        romanized = instance.romanize_string(_PROBE)
    except _FAULTS as cause:
        raise TextError(f"uroman cannot be used ({type(cause).__name__}: {cause}); {_REINSTALL}") from cause
    finally:  # it switches the collector off, and on again only if nothing went wrong
        (gc.enable if collecting else gc.disable)()
    if romanized != _PROBE_ROMANIZED:
        raise TextError(f"uroman is damaged: it spells {_PROBE!r} as {romanized!r}; {_REINSTALL}")
    return instance
