"""transformers' half of ../finetune_parity.py: an adapter trained as its example script trains one, and any evaluated.

.venv/bin/python -m experiments.benchmarks.train_result --help
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import soundfile
import torch
import transformers
from safetensors.torch import save_file

from experiments.benchmarks.train_peer import make_model, make_trainer, prepared_data, processor_of, read_folder
from mms_jax.training.metrics import error_rates

SPECIAL = {"unk_token": "[UNK]", "pad_token": "[PAD]", "word_delimiter_token": "|"}


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and test/")
    parser.add_argument("--language", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--warmup", type=int, required=True)
    parser.add_argument("--mask-time-prob", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    train(parser.parse_args())


def train(options: argparse.Namespace) -> None:
    """Vocabulary, data, Trainer, and a directory that transformers loads."""
    output: Path = options.output
    output.mkdir(parents=True)
    vocabulary_file = output / "vocab.json"
    vocabulary = make_vocabulary(options.data)
    vocabulary_file.write_text(json.dumps({options.language: vocabulary}), encoding="utf-8")
    processor = processor_of(vocabulary_file, target_lang=options.language, **SPECIAL)
    model = make_model(
        options.base,
        seed=options.seed,
        final_dropout=0.0,
        mask_time_prob=options.mask_time_prob,
        mask_feature_prob=0.0,
        layerdrop=0.0,
        ctc_loss_reduction="mean",
        pad_token_id=vocabulary[SPECIAL["pad_token"]],
        vocab_size=len(vocabulary),
        adapter_attn_dim=16,
    )
    arguments = transformers.TrainingArguments(
        output_dir=str(output / "trainer"),
        max_steps=options.steps,
        per_device_train_batch_size=options.batch,
        learning_rate=options.learning_rate,
        warmup_steps=options.warmup,
        train_sampling_strategy="group_by_length",
        length_column_name="input_length",
        seed=options.seed,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    make_trainer(model, processor, prepared_data(options.data / "train", processor), arguments).train()
    model.save_pretrained(output)
    processor.save_pretrained(output)
    adapter = {name: leaf.detach().contiguous() for name, leaf in model._get_adapters().items()}
    save_file(adapter, output / f"adapter.{options.language}.safetensors", {"format": "pt"})


def make_vocabulary(data: Path) -> dict[str, int]:
    """The characters of all transcripts, sorted; the blank of words in place of " ", then the special tokens."""
    texts = "".join(row["text"].lower() for split in ("train", "test") for row in read_folder(data / split))
    tokens = ["|" if letter == " " else letter for letter in sorted(set(texts))]
    return {token: index for index, token in enumerate([*tokens, SPECIAL["unk_token"], SPECIAL["pad_token"]])}


def character_error_rate(directory: Path, data: Path, *, language: str) -> float:
    """Of the adapter of a directory, ours or theirs, on a data set's folder: greedy texts, clip by clip."""
    tokenizer: Any = transformers.Wav2Vec2CTCTokenizer.from_pretrained(directory, target_lang=language)
    extractor: Any = transformers.Wav2Vec2FeatureExtractor.from_pretrained(directory)
    model: Any = transformers.Wav2Vec2ForCTC.from_pretrained(
        directory, target_lang=language, ignore_mismatched_sizes=True
    ).eval()
    texts, references = [], []
    for row in read_folder(data):
        waveform, rate = soundfile.read(row["file"], dtype="float32")
        inputs = extractor(waveform, sampling_rate=rate, return_tensors="pt", return_attention_mask=True)
        with torch.inference_mode():
            ids = model(**inputs).logits[0].argmax(-1)
        texts.append(tokenizer.decode(ids))
        references.append(row["text"])
    return error_rates(references, hypotheses=texts).cer


if __name__ == "__main__":
    main()
