"""Beam search with a 4-gram of letters: this library's on the device beside flashlight's, and beside the model itself.

    .venv/bin/python -m experiments.benchmarks beam --rounds 15

The emissions are those of the bundled English clips, as they are and under white noise, by the bundled checkpoint; the
model of letters is estimated from sentences of random words (Debian's wamerican). Both searches have the same beam, the
same tokens per frame and the same weight, and add up alignments. Every best text is scored exactly, by all of its
alignments and the n-gram. With wide beams both must find the same texts, or this one better ones, before anything is
timed; where flashlight-text is not installed it is left out. With the beam that is timed they differ where noise leaves
many texts as good: flashlight's beam has an entry for a prefix in a blank and another outside, and so fewer prefixes.
Times are medians of the rounds, taken in turn, in ms per second of audio; flashlight has one thread, JAX all there are.
On two cores of an AMD EPYC that other processes were using too (load 4):

    7,777 states of 28 tokens; 18 rows, 44 s
    beam 200: 18 of 18 texts are flashlight's
    beam 32: 16 of 18 texts are flashlight's; the others' scores less flashlight's: -0.76, +0.45
    model and greedy       2.46 ms/s    2.3x flashlight's speed
    device, one batch      0.44 ms/s   12.6x flashlight's speed
    device, row by row     0.63 ms/s    8.9x flashlight's speed
    device, no n-gram      0.36 ms/s   15.6x flashlight's speed
    flashlight             5.58 ms/s    1.0x flashlight's speed

So with the bundled model, of 1.4 million parameters, beam 32 has 85 % of the throughput of greedy decoding. MMS-1B
takes 200 ms for a second of audio here (bfloat16): there it is more than 99 %. No accelerator was at hand.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import mms_jax
from experiments.benchmarks.device import measure
from experiments.demo.ngram import SPACE, estimate, letters
from experiments.demo.sentences import read_common_words
from mms_jax.audio import SAMPLING_RATE, load_audio
from mms_jax.ctc import ctc_loss
from mms_jax.ctc.arpa import read_arpa
from mms_jax.ctc.dense_ngram import Automaton, dense_ngram
from mms_jax.ctc.prefix_beam import prefix_beam_search
from mms_jax.pipelines.demo import DEMO_MODEL, demo_clips

WORD_LIST = Path("/usr/share/dict/american-english")
SENTENCES, WORDS_EACH, ORDER = 20_000, 5, 4
NOISES_DB = (None, 20, 15, 10, 5, 0)  # signal to noise; None: as it is
LM_WEIGHT = 1.0  # on natural logarithms
BLANK, MARKS = 0, 3  # ids: <pad>, then <s>, </s> and <unk>, which nobody speaks and which are left out here
WIDE = 200
THRESHOLD = 50.0  # of flashlight: what is so much worse than the best is dropped, as torchaudio sets it

Text = tuple[int, ...]


class Rows(NamedTuple):
    """The emissions of all clips."""

    log_probs: np.ndarray  # float32 [B, T, V]
    num_frames: np.ndarray  # int32 [B]
    seconds: float  # of audio
    tokens: list[str]


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--beam", type=int, default=32)
    parser.add_argument("--beam-token", type=int, default=32)
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cuda,cpu" if options.device == "gpu" else "cpu")
    has_peer = find_spec("flashlight") is not None
    asr = mms_jax.load_asr(DEMO_MODEL, language="eng")
    clips = noisy_clips()
    rows = emissions(asr, clips)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "letters.arpa"
        path.write_text(estimate(map(letters, random_sentences()), order=ORDER), encoding="utf-8")
        ngram = dense_ngram(read_arpa(path), tokens=rows.tokens)
        peers = [flashlight(path, rows, beam, options.beam_token) for beam in (options.beam, WIDE) if has_peer]
    print(f"{ngram.scores.shape[0]:,} states of {len(rows.tokens)} tokens; {len(clips)} rows, {rows.seconds:.0f} s")
    sizes = {"beam_size": options.beam, "beam_size_token": options.beam_token}
    together = ours(rows, ngram, sizes)
    if peers:
        wide = ours(rows, ngram, {**sizes, "beam_size": WIDE})
        if not compare(f"beam {WIDE}", rows, ngram, wide(), peers[1]()):
            sys.exit("other texts with wide beams: no timing is worth it")
        compare(f"beam {options.beam}", rows, ngram, together(), peers[0]())
    functions = {
        "model and greedy": lambda: asr.transcribe(clips),
        "device, one batch": together,
        "device, row by row": one_by_one(rows, ngram, sizes),
        "device, no n-gram": ours(rows, None, sizes),
    }
    functions |= {"flashlight": peers[0]} if peers else {}
    times = [statistics.median(one) for one in measure(list(functions.values()), options.rounds)]
    for name, one in zip(functions, times, strict=True):
        ratio = f"{times[-1] / one:6.1f}x flashlight's speed" if peers else f"{times[0] / one:6.1f}x the model's speed"
        print(f"{name:<20} {1e3 * one / rows.seconds:6.2f} ms/s {ratio}", flush=True)


def noisy_clips() -> list[np.ndarray]:
    """The bundled English clips under white noise."""
    rng = np.random.default_rng(0)
    clips = [load_audio(clip.path) for clip in demo_clips() if clip.language == "eng"]
    levels = [0.0 if db is None else 10 ** (-db / 20) for db in NOISES_DB]
    noisy = [clip + level * clip.std() * rng.normal(size=clip.size) for level in levels for clip in clips]
    return [clip.astype(np.float32) for clip in noisy]


def emissions(asr: mms_jax.SpeechRecognizer, clips: list[np.ndarray]) -> Rows:
    """What the checkpoint says of the clips, without the columns of marks."""
    vocabulary = json.loads((Path(DEMO_MODEL) / "vocab.json").read_text(encoding="utf-8"))["eng"]
    tokens = [token for token, i in sorted(vocabulary.items(), key=lambda item: item[1]) if not 0 < i <= MARKS]
    logits = [np.delete(one, range(1, MARKS + 1), axis=1) for one in asr.logits(clips)]
    num_frames = np.array([len(one) for one in logits], np.int32)
    padded = np.stack([np.pad(one, ((0, num_frames.max() - len(one)), (0, 0))) for one in logits])
    log_probs = np.asarray(jax.nn.log_softmax(padded), np.float32)
    return Rows(log_probs, num_frames, sum(map(len, clips)) / SAMPLING_RATE, tokens)


def random_sentences() -> list[list[str]]:
    """Sentences of words that are drawn alike; of everyday words where there is no list."""
    listed = WORD_LIST.read_text(encoding="utf-8").split() if WORD_LIST.exists() else read_common_words("eng")
    words = [word for word in listed if word.isascii() and word.islower()]
    words = [word for word in words if word.isalpha()]
    drawn = np.random.default_rng(0).choice(words, size=(SENTENCES, WORDS_EACH))
    return drawn.tolist()


def ours(rows: Rows, ngram: Automaton | None, sizes: dict[str, int]) -> Callable[[], list[Text]]:
    """This library's best texts of the rows, ready to run."""
    search = functools.partial(
        prefix_beam_search, blank_id=BLANK, delimiter_id=rows.tokens.index(SPACE), lm_weight=LM_WEIGHT, **sizes
    )
    arguments = jnp.asarray(rows.log_probs), jnp.asarray(rows.num_frames), ngram
    compiled = jax.jit(lambda x, n, lm: search(x, n, ngram=lm)).lower(*arguments).compile()

    def run() -> list[Text]:
        result = compiled(*arguments)
        tokens, lengths = np.asarray(result.tokens[:, 0]), np.asarray(result.num_tokens[:, 0])
        return [tuple(row[:n].tolist()) for row, n in zip(tokens, lengths, strict=True)]

    return run


def one_by_one(rows: Rows, ngram: Automaton, sizes: dict[str, int]) -> Callable[[], list[Text]]:
    """The same in batches of one."""
    singles = [
        ours(Rows(log_probs[None, :n], np.array([n]), 0.0, rows.tokens), ngram, sizes)
        for log_probs, n in zip(rows.log_probs, rows.num_frames, strict=True)
    ]
    return lambda: [run()[0] for run in singles]


def flashlight(path: Path, rows: Rows, beam: int, beam_token: int) -> Callable[[], list[Text]]:
    """Flashlight's best texts of the rows, ready to run."""
    from flashlight.lib.text.decoder import CriterionType, LexiconFreeDecoder, LexiconFreeDecoderOptions
    from flashlight.lib.text.decoder.kenlm import KenLM
    from flashlight.lib.text.dictionary import Dictionary

    space = rows.tokens.index(SPACE)
    # Its scores of the n-gram are logarithms to base 10.
    options = LexiconFreeDecoderOptions(
        beam, beam_token, THRESHOLD, LM_WEIGHT * math.log(10), 0.0, True, CriterionType.CTC
    )
    decoder = LexiconFreeDecoder(options, KenLM(str(path), Dictionary(rows.tokens)), space, BLANK, [])

    def run() -> list[Text]:
        texts = []
        for frames, n in zip(rows.log_probs, rows.num_frames, strict=True):
            best = decoder.decode(np.ascontiguousarray(frames[:n]).ctypes.data, int(n), frames.shape[1])[0]
            texts.append(collapsed(best.tokens[1:-1]))  # between two delimiters of its own
        return texts

    return run


def collapsed(path: list[int]) -> Text:
    """The text of an alignment."""
    return tuple(t for before, t in pairwise([BLANK, *path]) if t not in (before, BLANK))


def compare(name: str, rows: Rows, ngram: Automaton, own: list[Text], peers: list[Text]) -> bool:
    """Print how many texts are flashlight's, and the exact scores of the others less those of flashlight's.

    Whether all are the same but for such as are better.
    """
    differences = exact_scores(rows, ngram, own) - exact_scores(rows, ngram, peers)
    different = [float(d) for d, one, other in zip(differences, own, peers, strict=True) if one != other]
    scores = f"; the others' scores less flashlight's: {', '.join(f'{d:+.2f}' for d in different)}" if different else ""
    print(f"{name}: {len(own) - len(different)} of {len(own)} texts are flashlight's{scores}")
    return all(d > 0 for d in different)


def exact_scores(rows: Rows, ngram: Automaton, texts: list[Text]) -> np.ndarray:
    """The log-probability of each row's text, of all its alignments, with the n-gram's."""
    labels = np.zeros((len(texts), max(map(len, texts))), np.int32)
    for row, text in zip(labels, texts, strict=True):
        row[: len(text)] = text
    losses = ctc_loss(
        jnp.asarray(rows.log_probs),
        labels=jnp.asarray(labels),
        num_frames=jnp.asarray(rows.num_frames),
        num_labels=jnp.asarray([len(text) for text in texts]),
        blank_id=BLANK,
        reduction="none",
    )
    return np.array([spelt(ngram, text) for text in texts]) * LM_WEIGHT - np.asarray(losses)


def spelt(ngram: Automaton, text: Text) -> float:
    """The n-gram's logarithm of a text."""
    scores, next_states, final_scores, state = map(
        np.asarray, (ngram.scores, ngram.next_states, ngram.final_scores, ngram.start)
    )
    total = 0.0
    for token in text:
        total += float(scores[state, token])
        state = next_states[state, token]
    return total + float(final_scores[state])


if __name__ == "__main__":
    main()
