"""``transcribe(lm=…)`` and ``mms-jax transcribe --lm`` on the bundled model: many languages, times, errors, weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import jiwer
import numpy as np
import pytest

import mms_jax
from experiments.demo.ngram import estimate, letters
from mms_jax.cli import main
from mms_jax.errors import LanguageModelError, MMSWarning, SettingError
from mms_jax.pipelines.decoding import pool
from mms_jax.pipelines.decoding.beam import MAX_PIECE
from mms_jax.pipelines.demo import DEMO_MODEL

CLIPS = DEMO_MODEL.parent / "clips"
TEXTS = [json.loads(line) for line in (DEMO_MODEL.parent / "clips.jsonl").read_text(encoding="utf-8").splitlines()]


def clips(code: str) -> list[str]:
    return [str(CLIPS / f"{code}-{number}.flac") for number in (1, 2, 3)]


def said(code: str) -> list[str]:
    return [clip["text"] for clip in TEXTS if clip["language"] == code]


@pytest.fixture(scope="module")
def asr() -> mms_jax.SpeechRecognizer:
    return mms_jax.load_asr(DEMO_MODEL)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A language model of letters for two languages, of what is said in the clips and of all letters."""
    folder = tmp_path_factory.mktemp("models")
    for code in ("eng", "deu"):
        alphabet = [" ".join(mms_jax.load_asr(DEMO_MODEL, language=code).tokenizer.vocabulary(code).letters)]
        sentences = [letters(text.split()) for text in (*said(code) * 3, *alphabet)]
        (folder / f"{code}.arpa").write_text(estimate(sentences, order=6), encoding="utf-8")
    return {code: folder / f"{code}.arpa" for code in ("eng", "deu")}


def texts(results: Sequence[mms_jax.Transcription]) -> list[str]:
    return [result.text for result in results]


@pytest.mark.parametrize("decoder", ["flashlight", "device"])
def test_a_language_model_corrects_what_greedy_decoding_misspells(asr, models, decoder):
    greedy = texts(asr.transcribe(clips("eng"), language="eng"))
    assert greedy != said("eng")
    found = asr.transcribe(clips("eng"), language="eng", lm=models["eng"], lm_weight=1.5, decoder=decoder)
    assert texts(found) == said("eng")


def test_every_row_of_a_mixed_batch_has_its_own_language_model(asr, models):
    files, languages = [clips("eng")[0], clips("deu")[0], clips("eng")[1]], ["eng", "deu", "eng"]
    mixed = asr.transcribe(files, language=languages, lm=models, lm_weight=1.5)
    alone = [
        asr.transcribe(file, language=code, lm=models[code], lm_weight=1.5)
        for file, code in zip(files, languages, strict=True)
    ]
    assert texts(mixed) == texts(alone) == [said("eng")[0], said("deu")[0], said("eng")[1]]
    assert [one.language for one in mixed] == languages


def test_none_searches_a_language_without_one(asr, models):
    found = asr.transcribe(clips("deu")[:1], language="deu", lm={"eng": models["eng"], "deu": None})[0]
    assert found.text == asr.transcribe(clips("deu")[:1], language="deu", beam=100)[0].text
    assert found.alternatives[0].lm_score == 0


def test_times_are_those_of_the_text_that_was_found(asr, models):
    found = asr.transcribe(clips("eng")[0], language="eng", lm=models["eng"], lm_weight=1.5, timestamps="word")
    greedy = asr.transcribe(clips("eng")[0], language="eng", timestamps="word")
    assert [word.text for word in found.words] == said("eng")[0].split()
    assert [word.start for word in found.words] == pytest.approx([word.start for word in greedy.words], abs=0.1)
    assert all(0 < word.score <= 1 for word in found.words)


def test_times_have_words_as_the_lexicon_writes_them(asr):
    words = {word.capitalize(): list(word) for word in said("eng")[0].split()}
    found = asr.transcribe(clips("eng")[0], language="eng", lexicon=words, timestamps="word")
    assert found.text == " ".join(words)
    assert [word.text for word in found.words] == list(words)
    assert "".join(char.text for char in found.chars if char.text != " ") == "".join(words).lower()


def test_alternatives_are_different_texts_best_first(asr, models):
    found = asr.transcribe(clips("eng")[0], language="eng", lm=models["eng"], lm_weight=0.3, num_best=5)
    scores = [one.score for one in found.alternatives]
    assert found.alternatives[0].text == found.text
    assert len({one.text for one in found.alternatives}) == len(scores) == 5
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("decoder", ["flashlight", "device"])
def test_a_hotword_is_favoured_and_nothing_else(asr, decoder):
    search = {"language": "eng", "beam": 100, "decoder": decoder}
    plain = texts(asr.transcribe(clips("eng"), **search))
    favoured = texts(asr.transcribe(clips("eng"), hotwords=["loafer"], **search))
    assert "loafer" not in plain[0]
    assert favoured[0].split()[2] == "loafer"
    assert favoured[1:] == plain[1:]


def test_silence_and_short_audio_are_empty_and_bad_items_keep_to_themselves(asr, models):
    rows = [np.zeros(16000, np.float32), np.zeros(10, np.float32), "nowhere.wav", clips("eng")[0]]
    found = asr.transcribe(rows, language="eng", lm=models["eng"], lm_weight=1.5, timestamps="word")
    assert [one.transcript for one in found] == ["", "", None, said("eng")[0]]
    assert found[2].error is not None
    assert found[0].words == ()


def test_long_audio_is_searched_in_pieces(asr, models):
    gap = np.zeros(16000, np.float32)
    spoken = [part for _ in range(12) for file in clips("eng") for part in (mms_jax.audio.load_audio(file), gap)]
    greedy = asr.transcribe(np.concatenate(spoken), language="eng")
    found = asr.transcribe(np.concatenate(spoken), language="eng", lm=models["eng"], lm_weight=1.5)
    assert found.duration * 50 > MAX_PIECE
    # The model does not part all words that a silence of a second parts; but no piece may lose or part one.
    assert len(found.text.split()) == len(greedy.text.split())
    assert jiwer.wer(" ".join(said("eng") * 12), found.text) < 0.25  # 0.15: last words of sentences, within one


def test_an_identified_language_has_the_language_model_that_is_named_for_it(models):
    asr = mms_jax.load_asr(DEMO_MODEL, lid=mms_jax.DEMO_LID)
    files = [clips("eng")[0], clips("deu")[0], clips("fra")[0]]
    found = asr.transcribe(files, language="auto", lm={"eng": models["eng"], "deu": models["deu"]}, lm_weight=1.5)
    assert texts(found[:2]) == [said("eng")[0], said("deu")[0]]
    assert isinstance(found[2].error, LanguageModelError)  # fra has none, and nobody said it needs none
    with pytest.raises(LanguageModelError, match="language='auto' may find any"):
        asr.transcribe(files, language="auto", lm=models["eng"])


def test_the_language_model_of_another_language_is_told_of(asr, models):
    with pytest.warns(MMSWarning, match="'ß', 'ä', 'ö', 'ü'"):
        asr.transcribe(clips("deu")[0], language="deu", lm=models["eng"])


def test_decoders_are_kept_for_the_next_call_and_made_anew_for_a_changed_file(asr, models, tmp_path):
    lm = tmp_path / "lm.arpa"
    lm.write_bytes(models["eng"].read_bytes())
    asr.transcribe(clips("eng")[0], language="eng", lm=lm)
    first = asr._decoders._kept[1]
    asr.transcribe(clips("eng")[0], language="eng", lm=lm, lm_weight=0.5, num_best=3)
    assert asr._decoders._kept[1] is first
    lm.write_text(lm.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    asr.transcribe(clips("eng")[0], language="eng", lm=lm)
    assert asr._decoders._kept[1] is not first


def test_decoders_are_made_anew_when_their_process_is_gone(asr, models, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 1)  # one process
    asr.transcribe(clips("eng")[0], language="eng", beam=5)  # others than before
    expected = asr.transcribe(clips("eng")[0], language="eng", lm=models["eng"]).text
    process = asr._decoders._kept[1]._searcher._process
    process.kill()
    process.wait()
    with pytest.raises(LanguageModelError, match="a process of the beam search ended"):
        asr.transcribe(clips("eng")[0], language="eng", lm=models["eng"])
    assert asr.transcribe(clips("eng")[0], language="eng", lm=models["eng"]).text == expected


def test_the_device_takes_letters_only(asr, tmp_path):
    lm = tmp_path / "words.arpa"
    lm.write_text(estimate([text.split() for text in said("eng")], order=2), encoding="utf-8")
    with pytest.raises(LanguageModelError, match="takes language models of letters and no lexicon"):
        asr.transcribe(clips("eng")[0], language="eng", lm=lm, decoder="device")


def test_an_order_that_kenlm_does_not_read_is_the_device_s(asr, tmp_path):
    lm = tmp_path / "long.arpa"
    lm.write_text(estimate([letters(text.split()) for text in said("eng")], order=8), encoding="utf-8")
    with pytest.raises(LanguageModelError, match="order 8, but the KenLM inside flashlight-text reads up to 6"):
        asr.transcribe(clips("eng")[0], language="eng", lm=lm)
    with pytest.warns(MMSWarning):
        found = asr.transcribe(clips("eng")[0], language="eng", lm=lm, decoder="device")
    assert found.text == said("eng")[0]


def test_tuning_finds_the_weights_with_the_fewest_errors(asr, models):
    trials = []
    tuning = asr.tune_lm(
        clips("eng"),
        said("eng"),
        lm=models["eng"],
        language="eng",
        lm_weights=(0.0, 1.5),
        word_scores=(0.0,),
        told=trials.append,
    )
    assert tuning.best == (1.5, 0.0, 0.0, 0.0)
    assert list(tuning.trials) == trials
    assert trials[0].wer > 0
    assert "*0.00%*" in str(tuning)
    with pytest.raises(SettingError, match=r"3 item\(s\), but 1 transcript"):
        asr.tune_lm(clips("eng"), ["a"], lm=models["eng"], language="eng")
    with pytest.raises(SettingError, match="transcripts are all empty"):
        asr.tune_lm(clips("eng"), ["", "", ""], lm=models["eng"], language="eng")


def test_tuning_takes_the_decoder_that_can(asr, models, tmp_path, monkeypatch):
    """The device's for letters, whether or not flashlight-text is installed; flashlight's for words."""
    words = tmp_path / "words.arpa"
    words.write_text(estimate([text.split() for text in said("eng")], order=2), encoding="utf-8")
    weights = {"language": "eng", "lm_weights": (1.0,), "word_scores": (1.0,)}
    assert asr.tune_lm(clips("eng"), said("eng"), lm=words, **weights).best.wer == 0
    monkeypatch.setattr(pool, "find_spec", lambda name: None)
    assert asr.tune_lm(clips("eng"), said("eng"), lm=models["eng"], **weights).best.wer < 0.5
    with pytest.raises(SettingError, match="pip install flashlight-text"):
        asr.tune_lm(clips("eng"), said("eng"), lm=models["eng"], decoder="flashlight", **weights)


def test_tuning_tells_of_transcripts_that_no_recognition_can_match(asr, models):
    with pytest.warns(MMSWarning, match=r"has not, so they count as errors: U \(1\) \. \(1\);"):
        asr.tune_lm(
            clips("eng")[:1],
            ["United swilled."],
            lm=models["eng"],
            language="eng",
            lm_weights=(1.0,),
            word_scores=(0.0,),
        )
    with pytest.raises(SettingError, match="give lists"):
        asr.tune_lm(clips("eng")[0], ["a"], lm=models["eng"], language="eng")


def test_the_program_takes_a_language_model_and_shows_alternatives(models, capsys):
    arguments = ["transcribe", *clips("eng")[:2], "--language", "eng", "--lm", str(models["eng"]), "--lm-weight", "1.5"]
    assert main([*arguments, "--format", "json", "--num-best", "2"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["text"] for row in rows] == said("eng")[:2]
    assert [len(row["alternatives"]) for row in rows] == [2, 2]


def test_a_transcript_that_is_none_is_refused(asr, models):
    with pytest.raises(SettingError, match="transcript 1 is None"):
        asr.tune_lm(clips("eng")[:2], [said("eng")[0], None], language="eng", lm=models["eng"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lm", ""], "lm is ''; give an ARPA file"),
        (["--lm", "nowhere.arpa"], "nowhere.arpa: no such file"),
        (["--num-best", "2"], "--num-best needs --format json"),
        (["--lm", "=a.arpa"], "give one file, or language=file for each"),
        (["--lm-weight", "2"], "lm_weight and word_score are those of a beam search"),
        (["--lm", "deu="], "no entry for 'eng', only for 'deu'"),
    ],
)
def test_the_program_says_what_is_wrong_in_one_line(arguments, message, capsys):
    assert main(["transcribe", clips("eng")[0], "--language", "eng", *arguments]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err.splitlines()[-1]


def test_the_program_tunes_on_a_table(models, tmp_path, capsys):
    table = tmp_path / "validation.csv"
    rows = [f"{file},{text}" for file, text in zip(clips("eng"), said("eng"), strict=True)]
    table.write_text("\n".join(["audio,text", *rows]), encoding="utf-8")
    arguments = ["--dataset_name", str(table), "--language", "eng", "--lm", str(models["eng"])]
    assert main(["tune-lm", *arguments, "--lm-weights", "0.5,1.5", "--word-scores=0"]) == 0
    printed = capsys.readouterr()
    assert "best on 3 clips: --lm-weight" in printed.out
    assert "WER 0.00%" in printed.out
    assert "2/2: lm_weight 1.5, word_score 0" in printed.err


def test_a_checkpoint_that_carries_a_decoder_is_loaded_and_its_decoder_used(tmp_path, models):
    """As transformers' Wav2Vec2ProcessorWithLM saves it, beside the model."""
    own = mms_jax.load_asr(DEMO_MODEL, language="eng")
    own.save_pretrained(tmp_path)
    for name in ("preprocessor_config.json", "tokenizer_config.json"):
        settings = json.loads((tmp_path / name).read_text(encoding="utf-8"))
        settings["processor_class"] = "Wav2Vec2ProcessorWithLM"
        (tmp_path / name).write_text(json.dumps(settings), encoding="utf-8")
    folder = tmp_path / "language_model"
    folder.mkdir()
    arpa = estimate([text.split() for text in said("eng")], order=3)
    folder.joinpath("3gram.arpa").write_text(arpa, encoding="utf-8")
    folder.joinpath("attrs.json").write_text('{"alpha": 0.5, "beta": 1.0}', encoding="utf-8")
    folder.joinpath("unigrams.txt").write_text("\n".join(" ".join(said("eng")).split()), encoding="utf-8")
    labels = list(own.tokenizer.vocabulary("eng").labels)
    labels[0], labels[3], labels[4] = "", "⁇", " "
    (tmp_path / "alphabet.json").write_text(json.dumps({"labels": labels, "is_bpe": False}), encoding="utf-8")
    found = mms_jax.load_asr(tmp_path).transcribe(clips("eng"), lm=tmp_path)
    assert texts(found) == said("eng")
