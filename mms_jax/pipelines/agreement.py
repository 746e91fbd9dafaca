"""How well a text agrees with its audio: the path of an alignment beside what the model hears on its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mms_jax.ctc.align import STAR


@dataclass(frozen=True)
class Agreement:
    """Of each frame, what the aligned path loses to the likeliest token.

    Args:
        relative: float64 [T]: log probability of the path's token less that of the likeliest; 0 for any sound.
        seconds_per_frame: from one frame to the next.
    """

    relative: np.ndarray
    seconds_per_frame: float

    @classmethod
    def of(
        cls, log_probs: np.ndarray, path: np.ndarray, parts: Sequence[Any], *, seconds_per_frame: float
    ) -> Agreement:
        """Compare a path with what was recognised.

        Args:
            log_probs: float [T, K].
            path: int [T]: a column of each frame, or ``STAR``.
            parts: ``Frames`` with the probability of the likeliest token, or numbers of frames of silence.
            seconds_per_frame: from one frame to the next.
        """
        each = np.where(path == STAR, 0.0, log_probs[np.arange(len(path)), path])
        best = [np.zeros(part) if isinstance(part, int) else np.log(part.scores.astype(np.float64)) for part in parts]
        return cls(np.minimum(each - np.concatenate([np.zeros(0), *best]), 0.0), seconds_per_frame)

    def score(self, start: float, end: float) -> float:
        """0.0 where the model hears the text and nothing else from ``start`` to ``end`` (seconds), less the worse.

        The mean over the frames of the log probability of the alignment less that of the likeliest path, by which MMS
        chose its training data. Other than a word's score it counts what is heard and is not in the text.
        """
        frames = self.relative[round(start / self.seconds_per_frame) : round(end / self.seconds_per_frame)]
        return float(frames.mean()) if len(frames) else 0.0
