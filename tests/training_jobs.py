"""Whole training jobs in this process, on tiny checkpoints and clips of noise, and what they leave behind."""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import json
import os
import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file
from safetensors.torch import save_file

import mms_jax
from mms_jax import cli
from mms_jax.models.trees import Params, flatten, unflatten
from mms_jax.pipelines.compilation import program_cache
from mms_jax.training import loop
from mms_jax.training.files.checkpoints import Checkpoints
from tests.checkpoints import LETTERS, save_processor, vocab
from tests.parity import BASE, quick, random_model, randomize, relative_error, small_config
from tests.sounds import RATE, encode, noise

# As many samples to a frame as in the real models, but in three convolutions: they are most of what is compiled.
CONVS: dict[str, Any] = {"conv_kernel": (10, 8, 8), "conv_stride": (5, 8, 8), "conv_dim": (12, 12, 12)}
WIDE = {"hidden_size": 72}  # more than the 64 channels of a mask in the examples' README
PARITY = 2e-5  # float32, other order of summation: see test_model_parity.py
WEIGHTS = "model.safetensors"
NO_DROPOUT = dict.fromkeys(("attention_dropout", "activation_dropout", "hidden_dropout", "feat_proj_dropout"), 0)
SPEEDS = ("audio_seconds_per_second",)  # of metrics.jsonl: what no two runs have in common

# What the README of transformers' examples says after the script's name, word for word.
CTC = r"""
    --dataset_name="mozilla-foundation/common_voice_17_0" --model_name_or_path="facebook/wav2vec2-large-xlsr-53"
    --dataset_config_name="tr" --output_dir="./wav2vec2-common_voice-tr-demo" --num_train_epochs="15"
    --per_device_train_batch_size="16" --gradient_accumulation_steps="2" --learning_rate="3e-4" --warmup_steps="500"
    --eval_strategy="steps" --text_column_name="sentence" --length_column_name="input_length" --save_steps="400"
    --eval_steps="100" --layerdrop="0.0" --save_total_limit="3" --freeze_feature_encoder --gradient_checkpointing
    --chars_to_ignore , ? . ! - \; \: \" “ % ‘ ” � --fp16 --group_by_length --push_to_hub --do_train --do_eval
"""
ADAPTER = r"""
    --dataset_name="common_voice" --model_name_or_path="facebook/mms-1b-all" --dataset_config_name="tr"
    --output_dir="./wav2vec2-common_voice-tr-mms-demo" --num_train_epochs="4" --per_device_train_batch_size="32"
    --learning_rate="1e-3" --warmup_steps="100" --eval_strategy="steps" --text_column_name="sentence"
    --length_column_name="input_length" --save_steps="200" --eval_steps="100" --save_total_limit="3"
    --target_language="tur" --gradient_checkpointing --chars_to_ignore , ? . ! - \; \: \" “ % ‘ ” � --fp16
    --group_by_length --do_train --do_eval --push_to_hub
"""
SECOND_ADAPTER = (
    ADAPTER.replace('"tr"', '"sw"').replace('"tur"', '"swe"')
    + ' --tokenizer_name_or_path="./wav2vec2-common_voice-tr-mms-demo"'
)
STREAMING = r"""
    --dataset_name="mozilla-foundation/common_voice_17_0" --model_name_or_path="facebook/wav2vec2-xls-r-300m"
    --tokenizer_name_or_path="anton-l/wav2vec2-tokenizer-turkish" --dataset_config_name="tr"
    --train_split_name="train+validation" --eval_split_name="test" --output_dir="wav2vec2-xls-r-common_voice-tr-ft"
    --max_steps="5000" --per_device_train_batch_size="8" --gradient_accumulation_steps="2" --learning_rate="5e-4"
    --warmup_steps="500" --eval_strategy="steps" --text_column_name="sentence" --save_steps="500" --eval_steps="500"
    --logging_steps="1" --layerdrop="0.0" --eval_metrics wer cer --save_total_limit="1" --mask_time_prob="0.3"
    --mask_time_length="10" --mask_feature_prob="0.1" --mask_feature_length="64" --freeze_feature_encoder
    --chars_to_ignore , ? . ! - \; \: \" “ % ‘ ” � --max_duration_in_seconds="20" --shuffle_buffer_size="500" --fp16
    --push_to_hub --do_train --do_eval --gradient_checkpointing
"""

TEXTS = {  # of clips, again and again; the first two languages have as many letters, and so share what is compiled
    "tur": ("Ağ, iş!", "çok iyi", "bir - iki", "dün; gün"),
    "swe": ("Å, nej.", "här dä", "två öl", "kör så"),
    "fin": ("yö", "hei hei", "äiti", "kyllä"),
}


# --- data ------------------------------------------------------------------------------------------------------------


def write_split(
    folder: Path, split: str, texts: Sequence[str], *, sizes: Sequence[int] = (8000,), seed: int = 0
) -> None:
    """A table of a split with the columns audio and sentence, and its clips: noise of ``sizes`` samples in turn."""
    (folder / split).mkdir(parents=True, exist_ok=True)
    with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["audio", "sentence", "samples"])
        for index, text in enumerate(texts):
            name = f"{split}/{index}.wav"
            waveform = noise(sizes[index % len(sizes)], seed=1000 * seed + index)
            (folder / name).write_bytes(encode(waveform))
            table.writerow([name, text, len(waveform)])


def write_data(
    folder: Path, language: str = "tur", *, count: int = 6, config: str | None = None, seed: int = 0, **options: Any
) -> Path:
    """A data set with ``count`` clips to train on, 2 of them in "validation", and 2 in "test"."""
    texts = [TEXTS[language][index % len(TEXTS[language])] for index in range(count + 2)]
    write_split(folder, "train", texts[: count - 2], seed=seed, **options)
    write_split(folder, "validation", texts[count - 2 : count], seed=seed + 1, **options)
    write_split(folder, "test", texts[count:], seed=seed + 2, **options)
    if config is not None:  # as a clone of the hub says which files make which configuration
        files = "".join(f"\n  - split: {split}\n    path: {split}.csv" for split in ("train", "validation", "test"))
        (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: {config}\n  data_files:{files}\n---\n")
    return folder


# --- checkpoints -----------------------------------------------------------------------------------------------------


@functools.cache
def mms() -> Path:
    """Adapters of English (in the weights, too) and of French."""
    directory, vocabularies = _new(), {language: vocab(LETTERS[language]) for language in ("eng", "fra")}
    save_processor(directory, vocabularies, target_lang="eng")
    for seed, (language, tokens) in enumerate(vocabularies.items()):
        model = random_model(small_config(**CONVS, vocab_size=len(tokens)), seed=seed)
        leaves = {name: leaf.detach().clone() for name, leaf in model._get_adapters().items()}
        save_file(leaves, directory / f"adapter.{language}.safetensors", metadata={"format": "pt"})
        if language == "eng":
            model.save_pretrained(directory)
    return directory


@functools.cache
def pretrained() -> Path:
    """An encoder without adapters and head, such as XLSR-53 and XLS-R."""
    directory = _new()
    config = small_config(**CONVS, **WIDE, num_hidden_layers=1, adapter_attn_dim=None)
    model: Any = transformers.Wav2Vec2ForPreTraining(config)
    randomize(model, seed=5)
    model.save_pretrained(directory)
    transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(directory)
    return directory


@functools.cache
def group_norm() -> Path:
    """wav2vec2-base in little, with a head of its own vocabulary."""
    directory, tokens = _new(), vocab(LETTERS["eng"])
    save_processor(directory, tokens, target_lang=None)
    transformers.Wav2Vec2FeatureExtractor(return_attention_mask=False).save_pretrained(directory)
    (directory / "processor_config.json").unlink(missing_ok=True)
    config = small_config(**BASE, **CONVS, num_hidden_layers=1, vocab_size=len(tokens))
    random_model(config, seed=3).save_pretrained(directory)
    return directory


@functools.cache
def turkish_tokenizer() -> Path:
    """A flat tokenizer, as the example of streaming takes one from the hub."""
    directory = _new()
    tokens = {token: id_ for id_, token in enumerate(["[PAD]", "[UNK]", "|", *"abcçdefgğhıijklmnoöprsştuüvyz"])}
    (directory / "vocab.json").write_text(json.dumps(tokens))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": None, "eos_token": None}
    transformers.Wav2Vec2CTCTokenizer(str(directory / "vocab.json"), **special).save_pretrained(directory)
    return directory


def _new() -> Path:
    return Path(tempfile.mkdtemp(prefix="jobs-"))


# --- jobs ------------------------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """How a run of the program ended."""

    code: int
    err: str  # what it said on stderr


@contextlib.contextmanager
def quick_jobs() -> Iterator[None]:
    """Jobs of this process compile as the other tests do, and every program once."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, MMS_JAX_CACHE_DIR=_cache()))
        stack.enter_context(program_cache(pytest.fail))
        for name in ("make_step", "make_listener"):
            compiled = functools.partial(getattr(loop, name), compiler_options=quick())
            stack.enter_context(mock.patch.object(loop, name, compiled))
        yield


@functools.cache
def _cache() -> str:
    return str(_new())


def run(command: Sequence[str] = (), **flags: Any) -> Outcome:
    """``mms-jax train`` with these words, and these flags after them, which go before those of the command."""
    words, err = [*command, *as_words(flags)], io.StringIO()
    with contextlib.redirect_stderr(err):
        try:
            code = cli.main(["train", *words])
        except SystemExit as exit:  # argparse's way
            code = int(exit.code or 0)
    return Outcome(code, err.getvalue())


def done(command: Sequence[str] = (), **flags: Any) -> str:
    """``run`` what must succeed; returns what it said."""
    outcome = run(command, **flags)
    assert outcome.code == 0, outcome.err
    return outcome.err


def as_words(flags: Mapping[str, Any]) -> list[str]:
    """Flags as a command line has them: True is a bare one, None none."""
    words: list[str] = []
    for name, value in flags.items():
        if value is None:
            continue
        values = [] if value is True else value if isinstance(value, (list, tuple)) else [value]
        words += [f"--{name}", *map(str, values)]
    return words


def readme(command: str, **names: Any) -> list[str]:
    """A command of the README with names of data set, model and output of ours."""
    return [*shlex.split(command), *as_words(names)]


def settings(data: Path | Sequence[Path], output: Path, **flags: Any) -> dict[str, Any]:
    """The flags of a short job on adapters; ``flags`` change or add some."""
    return {
        "model_name_or_path": mms(),
        "dataset_name": data,
        "text_column_name": "sentence",
        "target_language": "tur",
        "output_dir": output,
        "max_steps": 3,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "mask_time_prob": 0,
        "do_train": True,
    } | flags


# --- what is left ----------------------------------------------------------------------------------------------------


def metrics(output: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without those numbers that the clock makes."""
    lines = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in SPEEDS} for line in lines]


def evaluations(output: Path) -> list[dict[str, Any]]:
    """Those lines that are of evaluations."""
    return [record for record in metrics(output) if record["type"] == "eval"]


def saved_leaves(checkpoints: Path, *, step: int | None = None) -> dict[str, np.ndarray]:
    """Every array of a checkpoint, the newest by default."""
    with Checkpoints(checkpoints) as there:
        kept, entry = there._entry(step)
        return there._load(kept, {path: np.zeros(shape, dtype) for path, (dtype, shape) in entry.leaves.items()})


def saved_params(checkpoints: Path, *, step: int | None = None) -> Params:
    """The trained parameters of a checkpoint, [N, …]."""
    leaves = saved_leaves(checkpoints, step=step)
    return unflatten({p.removeprefix("params/"): leaf for p, leaf in leaves.items() if p.startswith("params/")})


def difference(one: Path, other: Path) -> float:
    """Largest difference between two safetensors files of the same tensors, relative to each one's largest element."""
    ours, theirs = load_file(one), load_file(other)
    assert ours.keys() == theirs.keys()
    return max(relative_error(ours[name], theirs[name]) for name in theirs)


def paths(tree: Params) -> set[str]:
    """Of a tree's leaves."""
    return set(flatten(tree))


@torch.no_grad()
def assert_loads_in_both(output: Path) -> None:
    """A fully fine-tuned model has the same logits and the same text in transformers and here."""
    waveform = noise(RATE // 2, seed=9)
    processor = transformers.AutoProcessor.from_pretrained(output)
    model = transformers.Wav2Vec2ForCTC.from_pretrained(output).eval()
    logits = model(**processor(waveform, sampling_rate=RATE, return_tensors="pt")).logits[0].numpy()
    asr = mms_jax.load_asr(output)
    assert relative_error(asr.logits(waveform)[0], logits) <= PARITY
    assert asr.transcribe(waveform).text == processor.decode(logits.argmax(-1))
