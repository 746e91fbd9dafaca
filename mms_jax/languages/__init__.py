"""Languages: what MMS covers, and any usual way to name a language -> a checkpoint's own tag.

Nothing here answers with another language than the one asked for. The tables are in mms_jax/data (its README says where
they come from) and are read on first use.
"""

from mms_jax.languages.resolve import find_languages, resolve_language
from mms_jax.languages.suggest import elsewhere, nearest
from mms_jax.languages.table import CHECKPOINTS, COLUMNS, TASKS, Language, languages
from mms_jax.languages.tags import labelled, language_name

__all__ = [
    "CHECKPOINTS",
    "COLUMNS",
    "TASKS",
    "Language",
    "elsewhere",
    "find_languages",
    "labelled",
    "language_name",
    "languages",
    "nearest",
    "resolve_language",
]
