"""Alignments without a model: words at given times."""

from __future__ import annotations

import numpy as np

from mms_jax.pipelines.agreement import Agreement
from mms_jax.pipelines.alignment import AlignedSegment, AlignedWord, Alignment, Found

HOP = 0.02  # seconds from one frame to the next


def aligned(words, *, segments=1, relative=None) -> Alignment:
    """An alignment of (text, start, end[, segment]) without a model; the frames agree unless ``relative`` says more."""
    found = tuple(AlignedWord(word[0], *word[1:3], 0.9, *(word[3:] or (0,))) for word in words)
    total = found[-1].end + 1
    lines = []
    for number in range(segments):
        own = [word for word in found if word.segment == number]
        cut = max(0.0, own[0].start - 0.1), own[-1].end + 0.1
        lines.append(AlignedSegment(" ".join(word.text for word in own), own[0].start, own[-1].end, 0.9, *cut))
    frames = np.zeros(round(total / HOP)) if relative is None else relative
    return Alignment("eng", total, Found(tuple(lines), found, (), 0.9, (), {}), agreement=Agreement(frames, HOP))


def spoken(pauses, texts, *, seconds=0.4):
    """Words of a length with these pauses between them."""
    start, words = 0.2, []
    for text, pause in zip(texts, [*pauses, 0.0], strict=True):
        words.append((text, round(start, 3), round(start + seconds, 3)))
        start += seconds + pause
    return words
