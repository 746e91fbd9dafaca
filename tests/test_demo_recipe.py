"""The demo checkpoints' data: what is held out stays held out, and batches are what the training needs."""

import argparse
import itertools
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import mms_jax
from experiments.demo import sentences
from experiments.demo.batches import (
    MARGIN,
    MAX_LABELS,
    Bucket,
    batches,
    encode,
    normalize,
    num_label_frames,
    place_in_noise,
    prefetch,
    vocabulary,
)
from experiments.demo.bundle import write_lid
from experiments.demo.evaluate import end_to_end, greedy_text, lid_score, middles, padded_batches, words_right
from experiments.demo.lid_batches import BUCKETS, LidBatch, cut, fitting, lid_batches, whole_clips
from experiments.demo.loop import fit, learning_rate, make_optimizer
from experiments.demo.sentences import LANGUAGES, build_lexicon, one_spelling_per_sound, split_of, usable_words
from experiments.demo.synthesize import SAMPLE_RATE, Corpus, draw_corpus, read_corpus, write_corpus
from experiments.demo.train_lid import FROZEN, LABELS, init_params, lid_config, train_step
from mms_jax.checkpoint import param_shapes
from mms_jax.models.trees import flatten
from mms_jax.pipelines.lid import Candidate, Identification

NUM_WORDS = 2000
FLOAT32_ROUNDING = 1e-4  # of a mean over 50,000 float32 samples of unit variance
WARMUP, MAIN = Bucket(1.0, 3), Bucket(2.0, 2)


def _word(n: int) -> str:
    """A pronounceable word for each number: consonants and vowels in turn."""
    return "".join("bdfglmnprst"[n // 55**i % 11] + "aeiou"[n // 55**i // 11 % 5] for i in range(3))


@pytest.fixture
def lexicon(tmp_path, monkeypatch):
    """English built from two made-up lists, every word sounding as it is spelled."""
    words = [_word(n) for n in range(NUM_WORDS)]
    (tmp_path / "american-english-small").write_text("\n".join(words[: NUM_WORDS // 2]), encoding="utf-8")
    (tmp_path / "american-english").write_text("\n".join(words), encoding="utf-8")
    monkeypatch.setattr(sentences, "WORD_LISTS", tmp_path)
    monkeypatch.setattr(sentences, "pronunciations", lambda words, *, voice: list(words))
    return build_lexicon("eng")


@pytest.fixture
def corpus():
    """Clips of noise, 0.3 to 1.8 s, with texts that fit them."""
    rng = np.random.default_rng(0)
    clips = [rng.normal(0, 3000, int(s * SAMPLE_RATE)).astype(np.int16) for s in rng.uniform(0.3, 1.8, 60)]
    texts = tuple(_word(i) + (" " + _word(i + 60) if len(clip) > SAMPLE_RATE else "") for i, clip in enumerate(clips))
    return Corpus(np.concatenate(clips), np.cumsum([0, *map(len, clips)]), texts)


def _batches(corpus: Corpus, count: int, seed: int = 0):
    stream = batches(
        {"eng": corpus, "deu": corpus}, slots=("eng", "deu", "eng"), warmup=WARMUP, main=MAIN, warmup_steps=2, seed=seed
    )
    return list(itertools.islice(stream, count))


def test_no_word_is_in_two_splits(lexicon):
    splits = [set(lexicon.train), set(lexicon.dev), set(lexicon.test)]
    assert all(splits)
    assert not any(a & b for a, b in itertools.combinations(splits, 2))


def test_held_out_words_come_from_the_ordinary_list_and_the_larger_lists_own_are_used_nowhere(lexicon):
    ordinary = {_word(n) for n in range(NUM_WORDS // 2)}
    assert set(lexicon.dev) | set(lexicon.test) <= ordinary
    assert all(split_of(word) == "train" for word in set(lexicon.train) - set(lexicon.common))


def test_everyday_words_are_training_words(lexicon):
    assert "water" in lexicon.common
    assert set(lexicon.common) <= set(lexicon.train)


def test_a_words_split_never_changes():
    assert [split_of(word) for word in ("water", "straße", "été", "mañana")] == ["test", "dev", "train", "train"]


def test_the_hash_holds_out_about_as_much_as_it_says():
    words = [_word(n) for n in range(20_000)]
    for split, percent in sentences.HELD_OUT_PERCENT.items():
        share = sum(split_of(word) == split for word in words) / len(words)
        assert share == pytest.approx(percent / 100, abs=0.005)  # four standard deviations of a binomial


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_a_sentence_holds_words_of_its_split_only(lexicon, split):
    spoken = {word for u in draw_corpus("eng", split=split, lexicon=lexicon, count=200) for word in u.text.split()}
    assert spoken <= set(getattr(lexicon, split))


def test_the_same_seed_says_the_same_and_splits_differ(lexicon):
    def draw(split):
        return draw_corpus("eng", split=split, lexicon=lexicon, count=5)

    assert draw("test") == draw("test")
    assert [(u.voice, u.rate) for u in draw("dev")] != [(u.voice, u.rate) for u in draw("test")]


def test_names_possessives_abbreviations_and_foreign_letters_are_no_words():
    lines = ["water\n", "water's\n", "Water\n", "Paris\n", "mrs\n", "café\n", "a\n", "incomprehensibility\n"]
    assert usable_words(lines, language=LANGUAGES["eng"]) == ["water"]
    assert usable_words(["Hund\n", "gehen\n"], language=LANGUAGES["deu"]) == ["hund", "gehen"]


def test_of_words_that_sound_alike_the_everyday_one_stays_then_the_shortest():
    words = ["sea", "see", "parler", "parlé", "iglou"]
    sounds = ["s'i:", "s'i:", "paRl'e", "paRl'e", "(en)'Iglu:(fr)"]
    assert one_spelling_per_sound(words, sounds, preferred=frozenset({"see"})) == ["see", "parlé"]


def test_every_letter_of_the_everyday_words_is_in_the_vocabulary():
    for code in LANGUAGES:
        assert encode(" ".join(sentences.read_common_words(code)), vocab=vocabulary(code))


def test_vocabularies_are_laid_out_as_in_mms():
    for code in LANGUAGES:
        vocab = vocabulary(code)
        assert list(vocab)[:5] == ["<pad>", "<s>", "</s>", "<unk>", "|"]
        assert list(vocab.values()) == list(range(len(vocab)))


def test_a_letter_outside_the_vocabulary_is_an_error():
    with pytest.raises(KeyError, match="ñ"):
        encode("año", vocab=vocabulary("eng"))


def test_batches_have_the_warm_up_shape_first_and_then_the_other(corpus):
    shapes = [batch.input_values.shape for batch in _batches(corpus, 4)]
    assert shapes == [(3, 3, 16_000)] * 2 + [(3, 2, 32_000)] * 2


def test_no_stretch_of_a_batch_is_constant(corpus):
    for batch in _batches(corpus, 4):
        stretches = batch.input_values.reshape(*batch.input_values.shape[:2], -1, 100)
        assert stretches.std(-1).min() > 0


def test_rows_have_zero_mean_and_unit_variance(corpus):
    values = _batches(corpus, 1)[0].input_values
    np.testing.assert_allclose(values.mean(-1), 0, atol=FLOAT32_ROUNDING)
    np.testing.assert_allclose(values.std(-1), 1, atol=FLOAT32_ROUNDING)


def test_every_row_can_be_aligned_and_its_labels_spell_clips_of_the_corpus(corpus):
    for batch in _batches(corpus, 6):
        for slot, row in np.ndindex(*batch.labels.shape[:2]):
            ids = batch.labels[slot, row][batch.label_paddings[slot, row] == 0]
            text = "".join(list(vocabulary("eng" if slot != 1 else "deu"))[i] for i in ids).replace("|", " ")
            assert num_label_frames(text) <= batch.input_values.shape[-1] // 320 - 1
            assert len(text) <= MAX_LABELS
            assert set(text.split()) <= set(" ".join(corpus.texts).split())


def test_all_clips_that_fit_are_heard_before_any_is_heard_twice(corpus):
    stream = batches({"eng": corpus}, slots=("eng",), warmup=MAIN, main=MAIN, warmup_steps=0, seed=0)
    heard: list[str] = []
    while len(heard) < len(corpus.texts) // 2:
        batch = next(stream)
        tokens = list(vocabulary("eng"))
        for row in range(MAIN.rows):
            ids = batch.labels[0, row][batch.label_paddings[0, row] == 0]
            heard += "".join(tokens[i] for i in ids).replace("|", " ").split()
    assert len(heard) == len(set(heard))


def test_the_same_seed_gives_the_same_batches(corpus):
    first, again, other = (_batches(corpus, 3, seed=seed)[-1] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.input_values, again.input_values)
    assert not np.array_equal(first.labels, other.labels)


def test_speech_is_heard_above_the_noise_wherever_it_is_placed():
    clip = np.full(1000, 8000, np.int16)
    placed = place_in_noise([clip, clip], num_samples=5000, rng=np.random.default_rng(0))
    assert np.sort(placed)[-2000:].min() > placed.mean() + 0.5


def test_a_corpus_that_no_row_can_hold_is_an_error(corpus):
    with pytest.raises(ValueError, match=r"eng: only 0 clips fit 0\.2 s"):
        next(batches({"eng": corpus}, slots=("eng",), warmup=Bucket(0.2, 1), main=MAIN, warmup_steps=1, seed=0))


def test_an_error_of_the_batch_thread_is_raised_to_its_consumer():
    def broken():
        yield from ()
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        next(prefetch(broken()))


def test_a_corpus_is_read_as_it_was_written(tmp_path, corpus):
    clips = [corpus.clip(i) for i in range(3)]
    write_corpus(tmp_path / "x", clips=clips, texts=corpus.texts[:3])
    read = read_corpus(tmp_path / "x")
    assert read.texts == corpus.texts[:3]
    for i, clip in enumerate(clips):
        np.testing.assert_array_equal(read.clip(i), clip)


def test_evaluation_hears_every_clip_once_with_its_own_samples_only(corpus):
    seen = []
    for indices, values, mask in padded_batches(corpus, count=len(corpus.texts)):
        for row, i in enumerate(indices):
            seen.append(i)
            np.testing.assert_array_equal(values[row][mask[row]], normalize(corpus.clip(i)))
            assert not values[row][~mask[row]].any()
    assert sorted(seen) == list(range(len(corpus.texts)))


def test_words_right_counts_whole_words_in_order():
    assert words_right(["the red house", "sea"], ["the rad house", "a sea"]) == pytest.approx(3 / 4)


def test_decoding_merges_repeats_and_keeps_doubled_letters():
    vocab = vocabulary("eng")
    h, e, ll, o, blank, space = vocab["h"], vocab["e"], vocab["l"], vocab["o"], 0, vocab["|"]
    ids = [space, blank, h, h, e, blank, ll, ll, blank, ll, o, space, space, blank, space, o, blank]
    assert greedy_text(ids, tokens=list(vocab)) == "hello o"


def _tones(frequency: float) -> Corpus:
    """Clips of one tone, half a second each, far above the noise of the batches."""
    clip = (8000 * np.sin(2 * np.pi * frequency / SAMPLE_RATE * np.arange(SAMPLE_RATE // 2))).astype(np.int16)
    return Corpus(np.tile(clip, 20), np.arange(21) * len(clip), ("x",) * 20)


def _lid_batches(corpora, count: int, seed: int = 0):
    return list(itertools.islice(lid_batches(corpora, seed=seed), count))


def test_language_identification_hears_each_row_in_the_language_of_its_label():
    pitches = (500, 3000)
    for batch in _lid_batches({"eng": _tones(pitches[0]), "deu": _tones(pitches[1])}, 4):
        for audio, mask, label in zip(*batch, strict=True):
            spectrum = np.abs(np.fft.rfft(audio[mask]))
            loudest = spectrum.argmax() * SAMPLE_RATE / mask.sum()
            assert loudest == pytest.approx(pitches[label], rel=0.02)  # cuts and joints widen the peak


def test_rows_of_language_identification_are_normalised_over_what_the_mask_leaves(corpus):
    batches = _lid_batches({"eng": corpus, "deu": corpus}, 8)
    assert {batch.input_values.shape for batch in batches} <= {(b.rows, b.num_samples) for b in BUCKETS}
    assert len({batch.input_values.shape for batch in batches}) > 1
    for batch in batches:
        for audio, mask in zip(batch.input_values, batch.mask, strict=True):
            assert mask[: mask.sum()].all()
            assert not audio[~mask].any()
            assert audio[mask].mean() == pytest.approx(0, abs=FLOAT32_ROUNDING)
            assert audio[mask].std() == pytest.approx(1, abs=FLOAT32_ROUNDING)


def test_the_same_seed_gives_the_same_batches_of_language_identification(corpus):
    first, again, other = (_lid_batches({"eng": corpus, "deu": corpus}, 2, seed=seed)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.input_values, again.input_values)
    assert first.labels.tolist() != other.labels.tolist()


def test_whole_clips_are_whole_and_cuts_last_at_least_half_a_bucket():
    tones, bucket, rng = _tones(500), Bucket(1.8, 1), np.random.default_rng(0)
    for _ in range(20):
        whole = whole_clips(tones, members=np.arange(20), bucket=bucket, rng=rng)
        assert 0 <= len(whole) - 3 * SAMPLE_RATE // 2 < MARGIN  # three clips fit
        assert bucket.num_samples // 2 <= len(cut(tones, bucket=bucket, rng=rng)) <= bucket.num_samples


def test_a_corpus_without_a_clip_for_a_bucket_is_an_error():
    with pytest.raises(ValueError, match=r"no clip fits 0\.5 s"):
        fitting(_tones(500), bucket=Bucket(0.5, 1))


@pytest.fixture
def recogniser():
    """Parameters of a recogniser of two layers and four adapters, every element drawn."""
    rng = np.random.default_rng(0)
    shapes = param_shapes(lid_config(2).replace(adapter_attn_dim=4))
    return {path: jnp.asarray(rng.uniform(0.1, 0.2, shape), jnp.float32) for path, shape in shapes.items()}


def test_language_identification_starts_from_the_recognisers_first_layers(recogniser):
    frozen, trained = init_params(lid_config(1), recogniser=recogniser, seed=0)
    assert all(path.startswith(FROZEN) for path in frozen)
    assert not any("adapter" in path or "layers_1" in path or path.startswith("lm_head") for path in trained)
    for path, value in (frozen | trained).items():
        if not path.startswith(("projector/", "classifier/")):
            np.testing.assert_array_equal(value, recogniser[path])


def test_a_step_changes_everything_but_the_convolutions(recogniser):
    config = lid_config(1)
    trees = init_params(config, recogniser=recogniser, seed=0)
    before = jax.tree.map(np.array, trees)  # copies: the step takes the arrays themselves
    rng = np.random.default_rng(0)
    audio = rng.standard_normal((2, 800), dtype=np.float32)
    batch = LidBatch(audio, np.ones(audio.shape, bool), np.array([0, 1], np.int32))
    (frozen, trained), _, loss, _ = train_step(trees, make_optimizer().init(trees[1]), batch, 1e-3, config=config)
    assert np.isfinite(loss)
    assert all((frozen[path] == value).all() for path, value in before[0].items())
    # A key's bias shifts all scores of a query alike, so it has no gradient.
    kept = [path for path, value in before[1].items() if (trained[path] == value).all()]
    assert all(path.endswith("attention/k/bias") for path in kept)


def test_the_bundled_language_identification_is_what_was_trained(tmp_path, recogniser):
    frozen, trained = init_params(lid_config(1), recogniser=recogniser, seed=0)
    write_lid({path: np.asarray(value) for path, value in (frozen | trained).items()}, tmp_path / "lid")
    loaded = mms_jax.load_lid(tmp_path / "lid")
    assert tuple(loaded.languages) == LABELS
    assert loaded.config.num_hidden_layers == 1
    params = flatten(loaded.params)
    assert params.keys() == (frozen | trained).keys()
    assert all((np.asarray(params[path]) == np.asarray(value)).all() for path, value in (frozen | trained).items())


def test_the_learning_rate_rises_stays_and_falls_to_nothing():
    rates = [
        learning_rate(p, step=step, peak=1.0) for p, step in ((0, 0), (0.1, 99), (0.3, 500), (0.7, 999), (1, 2000))
    ]
    assert rates == pytest.approx([0.005, 0.5, 1.0, 0.5, 0.0])


def test_training_keeps_the_best_parameters_and_the_last(tmp_path):
    scores = iter([3.0, 1.0, 2.0])
    options = argparse.Namespace(steps=2, minutes=float("inf"), evaluate_every=-1, learning_rate=1.0, output=tmp_path)
    batch = SimpleNamespace(input_values=np.zeros(SAMPLE_RATE))

    def count(trees, state, batch, rate):
        return (trees[0], {"x": trees[1]["x"] + 1}), state, jnp.zeros(()), jnp.zeros(())

    seen = []
    fit(
        ({}, {"x": jnp.zeros(1)}),
        state=None,
        stream=itertools.repeat(batch),
        train_step=count,
        evaluate=lambda trees, final: seen.append((trees[1]["x"].item(), final)) or next(scores),
        options=options,
    )
    assert seen == [(1, False), (2, False), (3, True)]
    assert load_file(tmp_path / "best.safetensors")["x"] == 2
    assert load_file(tmp_path / "last.safetensors")["x"] == 3


def test_language_identification_is_asked_about_middles_and_about_clips_end_to_end():
    clips = [np.arange(SAMPLE_RATE, dtype=np.float32), np.arange(2 * SAMPLE_RATE, dtype=np.float32)]
    (middle,) = middles(clips, seconds=1.5)
    np.testing.assert_array_equal(middle, clips[1][SAMPLE_RATE // 4 : -SAMPLE_RATE // 4])
    joined = end_to_end(clips, seconds=1.25)
    assert [len(part) for part in joined] == [SAMPLE_RATE * 5 // 4] * 2
    np.testing.assert_array_equal(np.concatenate(joined), np.concatenate(clips)[: SAMPLE_RATE * 5 // 2])


def test_scores_of_language_identification_are_those_of_the_right_language():
    answers = [("eng", 0.75, "deu"), ("deu", 0.6, "eng"), ("eng", 1.0, "deu")]
    results = [Identification(1.0, (Candidate(best, p), Candidate(other, 1 - p))) for best, p, other in answers]
    lid: Any = SimpleNamespace(languages=["eng", "deu"], identify=lambda clips, **_: results)
    score = lid_score(lid, [np.zeros(1)] * 3, code="eng")
    assert (score.recordings, score.accuracy) == (3, pytest.approx(2 / 3))
    assert score.probability == pytest.approx((0.75 + 0.4 + 1) / 3)
    assert score.loss == pytest.approx(-(np.log(0.75) + np.log(0.4)) / 3)
