"""README.md of a repository on the hub: what lies between our marks is made anew, the rest is the user's and stays."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mms_jax.errors import CheckpointError
from mms_jax.languages import language_name

CARD = "README.md"
TRAINED = "<!-- mms_jax: from here on this text is made anew by every training -->"
PUSHED = "<!-- mms_jax: from here on this text is made anew by every push -->"
END = "<!-- mms_jax: up to here -->"
TAGS = ["mms", "jax"]
_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n+", re.DOTALL)
_NAMED = 20  # languages; more are counted
_LISTED = ("language", "tags")  # what is added to, where the rest is kept


def is_ours(text: str) -> bool:
    """Whether a README.md has a part that we wrote."""
    return TRAINED in text or PUSHED in text


def merge_card(existing: str, *, front_matter: str, mark: str, body: str) -> str:
    """``existing`` with a new front matter, and our part of it (or what begins it) made anew."""
    ours = f"{mark}\n{body}\n{END}"
    rest = _FRONT_MATTER.sub("", existing)
    part = re.compile(rf"{re.escape(mark)}.*?{re.escape(END)}", re.DOTALL)
    text = part.sub(lambda _: ours, rest) if part.search(rest) else f"{ours}\n\n{rest}".rstrip()
    return f"---\n{front_matter.strip()}\n---\n\n{text.strip()}\n"


@dataclass(frozen=True, kw_only=True)
class Card:
    """What the card of a pushed model says: its task as the hub calls it, and the code that loads it."""

    task: str
    languages: Iterable[str]
    kind: str
    usage: str
    base: str | None
    base_on_hub: bool
    licence: str | None
    tags: Iterable[str] = ()

    def text(self, repo_id: str, *, existing: str = "") -> str:
        """README.md of ``repo_id``, where ``existing`` is what is there; its own facts are kept and ours are added.

        Raises:
            CheckpointError: what is there has a front matter that is no YAML.
        """
        matter = _front_matter(existing, repo_id)
        for name, value in self._facts().items():
            if name in _LISTED:
                matter[name] = sorted({*_several(matter.get(name)), *value})
            elif value is not None:
                matter.setdefault(name, value)
        front_matter = _yaml({name: value for name, value in matter.items() if value})
        if TRAINED in existing and PUSHED not in existing:  # the results of a training say more than we could
            return f"---\n{front_matter.strip()}\n---\n\n{_FRONT_MATTER.sub('', existing)}"
        return merge_card(existing, front_matter=front_matter, mark=PUSHED, body=self._body(repo_id))

    def _facts(self) -> dict[str, Any]:
        return {
            "language": [tag.partition("-")[0] for tag in self.languages],
            "license": self.licence,
            "base_model": self.base if self.base_on_hub else None,
            "library_name": "transformers",  # whose layout it is: the hub shows its users how to load it
            "pipeline_tag": self.task,
            "tags": [*TAGS, *self.tags],
        }

    def _body(self, repo_id: str) -> str:
        languages = list(self.languages)
        named = [_named(tag) for tag in languages[:_NAMED]]
        more = f" and {len(languages) - _NAMED:,} more" if len(languages) > _NAMED else ""
        licence = f", licence {self.licence}" if self.licence else ", which states no licence"
        sections = [
            f"# {repo_id}",
            f"{self.kind}: {', '.join(named)}{more}." if named else f"{self.kind}.",
            f"Written with mms_jax, from `{self.base}`{licence}." if self.base else "Written with mms_jax.",
            "## Use",
            f"```python\n{self.usage.strip()}\n```",
        ]
        return "\n\n".join(sections)


def _named(tag: str) -> str:
    name = language_name(tag)
    return f"{name} ({tag})" if name else tag


def _several(value: Any) -> list[str]:
    """A list in YAML, which may be written as its only element."""
    values = value if isinstance(value, list) else [] if value is None else [value]
    return ["no" if one is False else str(one) for one in values]  # YAML takes Norwegian for a refusal


def _front_matter(text: str, repo_id: str) -> dict[str, Any]:
    import yaml  # which huggingface_hub brings

    match = _FRONT_MATTER.match(text)
    if match is None:
        return {}
    try:
        values = yaml.safe_load(match[0].strip().strip("-"))
    except yaml.YAMLError as error:
        raise CheckpointError(
            f"{repo_id}: the front matter of its {CARD} is no YAML ({' '.join(str(error).split())}); mend it there"
        ) from error
    return values if isinstance(values, dict) else {}


def _yaml(values: Mapping[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=10_000)
