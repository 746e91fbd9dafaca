"""Finding whole tokens in a text before it is split into characters, the way transformers' Python tokenizers do."""

from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple


class AddedToken(NamedTuple):
    """A token matched as a whole, its id, and whether it swallows the white space around it.

    ``single_word``: it only counts where it stands between spaces (or at an end of the text).
    """

    content: str
    id: int
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


class AddedTokenSplitter:
    """Cuts a text into added tokens and the stretches between them."""

    def __init__(self, tokens: Mapping[str, AddedToken]):
        self._tokens = dict(tokens)
        self._prefixes = frozenset(token[:end] for token in tokens for end in range(1, len(token) + 1))
        self._initials = frozenset(token[0] for token in tokens)

    def split(self, text: str) -> list[str]:
        """Return the pieces of ``text`` in order, white space removed where a neighbouring token swallows it."""
        if self._initials.isdisjoint(text):  # the usual transcript: nothing to look for
            return [text] if text else []
        pieces = self._cut(text)
        for place in range(len(pieces)):
            token = self._tokens.get(pieces[place])
            if token is not None:
                self._apply(token, pieces, place)
        return [piece for piece in pieces if piece]

    @staticmethod
    def _apply(token: AddedToken, pieces: list[str], place: int) -> None:
        left = pieces[place - 1] if place > 0 else ""
        right = pieces[place + 1] if place + 1 < len(pieces) else ""
        if token.rstrip and right:
            pieces[place + 1] = right.lstrip()
        if token.lstrip and left:
            pieces[place - 1] = left.rstrip()
        if token.single_word and left and left[-1] != " ":
            pieces[place - 1] += token.content
            pieces[place] = ""
        elif token.single_word and right and right[0] != " ":
            pieces[place + 1] = token.content + pieces[place + 1]
            pieces[place] = ""

    def _cut(self, text: str) -> list[str]:
        """Cut at the leftmost, longest tokens; ``candidates`` maps a start to what was read since, earliest first."""
        cuts = [0]
        candidates: dict[int, str] = {}
        resume = 0
        for now, char in enumerate(text):
            if now < resume:
                continue
            failed = []
            for start, read in candidates.items():
                if read in self._tokens:
                    span = self._longest(text, candidates, complete=start, now=now)
                    cuts.extend(span)
                    resume = span[1]
                    candidates, failed = {}, []
                    break
                if read + char in self._prefixes:
                    candidates[start] = read + char
                else:
                    failed.append(start)
            for start in failed:
                del candidates[start]
            if now >= resume and char in self._initials:
                candidates[now] = char
        last = next((start for start, read in candidates.items() if read in self._tokens), None)
        cuts.extend([] if last is None else [last])
        bounds = [*cuts, len(text)]
        return [text[start:end] for start, end in pairwise(bounds) if start < end]

    def _longest(self, text: str, candidates: Mapping[int, str], *, complete: int, now: int) -> tuple[int, int]:
        """Extend the candidates up to the ``complete`` one and return the span of the earliest that becomes a token.

        A candidate before it has read ``text[now]``, or has just failed on it. The original extends failed ones too,
        skipping that character: with tokens "abcd" and "bc", the text "abcXd" stays one piece. Labels depend on it.
        """
        for start, candidate in candidates.items():
            position = now if start == complete else now + 1
            read, end = candidate, position if candidate in self._tokens else None
            while position < len(text) and read + text[position] in self._prefixes:
                read += text[position]
                position += 1
                end = position if read in self._tokens else end
            if end is not None:
                return start, end
        raise AssertionError("the complete candidate is itself a token")
