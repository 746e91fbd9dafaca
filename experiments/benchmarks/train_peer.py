"""transformers' side of train.py: its Trainer, used as its example script for adapters uses it.

(examples/pytorch/speech-recognition/run_speech_recognition_ctc_adapter.py.) The model is read from a directory, its
adapters are made anew, everything else is frozen; batches are padded to their longest clip.
"""

from __future__ import annotations

import csv
import json
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file

from experiments.benchmarks.train_setup import LEARNING_RATE, LETTERS, RATE, SPECIAL, Clip, Settings, make_batches
from experiments.benchmarks.train_worker import Parent, limit_threads


def make_model(directory: Path, *, seed: int = 0, **changes: Any) -> transformers.Wav2Vec2ForCTC:
    """The checkpoint with fresh adapters, ready to train these and its head; ``changes`` are of its config."""
    config = transformers.AutoConfig.from_pretrained(directory)
    config.update(changes)
    transformers.set_seed(seed)
    model = transformers.AutoModelForCTC.from_pretrained(directory, config=config, ignore_mismatched_sizes=True)
    model.init_adapter_layers()
    # In transformers 5.23 that makes the head anew and leaves the adapters as the checkpoint has them, English ones in
    # MMS: it initialises an adapter and not the layers that the adapter is made of. What it means is done here.
    for name, part in model.named_modules():
        if ".adapter_layer." in name:
            initialize(part)
    model.freeze_base_model()
    for parameter in model._get_adapters().values():
        parameter.requires_grad = True
    return model


@torch.no_grad()
def initialize(part: torch.nn.Module) -> None:
    """A layer of an adapter, as transformers initialises layers of their kind."""
    if isinstance(part, torch.nn.LayerNorm):
        part.reset_parameters()
    elif isinstance(part, torch.nn.Linear):
        part.weight.normal_(0, 0.02)
        part.bias.zero_()


def processor_of(vocabulary_file: Path, **tokens: Any) -> transformers.Wav2Vec2Processor:
    """A processor for a vocabulary."""
    extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True)
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(vocabulary_file), **tokens)
    return transformers.Wav2Vec2Processor(feature_extractor=extractor, tokenizer=tokenizer)


class Collator:
    """Clips and labels padded to the longest of the batch; padding of labels is -100."""

    def __init__(self, processor: transformers.Wav2Vec2Processor):
        self._processor = processor

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """One batch."""
        inputs = [{"input_values": row["input_values"]} for row in rows]
        batch: Any = self._processor.pad(inputs, padding="longest", return_tensors="pt")
        labels = [{"input_ids": row["labels"]} for row in rows]
        padded: Any = self._processor.pad(labels=labels, padding="longest", return_tensors="pt")
        batch["labels"] = padded["input_ids"].masked_fill(padded.attention_mask.ne(1), -100)
        if "attention_mask" in batch:
            batch["attention_mask"] = batch["attention_mask"].to(torch.long)
        return batch


def make_trainer(model: Any, processor: Any, data: Any, arguments: Any, **more: Any) -> transformers.Trainer:
    """A Trainer that prints nothing."""
    collator = Collator(processor)
    trainer = transformers.Trainer(model, arguments, collator, train_dataset=data, processing_class=processor, **more)
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def read_folder(folder: Path) -> list[dict[str, str]]:
    """The rows of an audio folder: paths and texts."""
    with (folder / "metadata.csv").open(encoding="utf-8", newline="") as file:
        return [{"file": str(folder / row["file_name"]), "text": row["text"]} for row in csv.DictReader(file)]


def prepared_data(folder: Path, processor: Any) -> Any:
    """A folder's clips as the script prepares them, on disk; decoded by soundfile, where it takes torchcodec."""
    import datasets
    import soundfile

    def prepare(row: dict[str, str]) -> dict[str, Any]:
        waveform, rate = soundfile.read(row["file"], dtype="float32")
        values = processor(waveform, sampling_rate=rate).input_values[0]  # raises for another rate than 16 kHz
        labels = processor.tokenizer(row["text"].lower()).input_ids
        return {"input_values": values, "input_length": len(values), "labels": labels}

    rows = datasets.Dataset.from_list(read_folder(folder))
    file = str(folder / f"prepared-{time.time_ns()}.arrow")
    return rows.map(prepare, remove_columns=rows.column_names, cache_file_name=file)


class Cycle(torch.utils.data.Dataset):
    """So many batches' rows, round and round in the same order."""

    def __init__(self, batches: Sequence[Sequence[Clip]], *, num_batches: int):
        extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True)
        self._rows = [
            {"input_values": extractor(clip.waveform, sampling_rate=RATE).input_values[0], "labels": clip.labels}
            for batch in batches
            for clip in batch
        ]
        self._length = num_batches * len(batches[0])

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One row."""
        return self._rows[index % len(self._rows)]


class Rounds(transformers.TrainerCallback):
    """Times the steps of a Trainer's loop, in rounds that the parent asks for.

    A step is all that the loop does with a batch that is there: loss, gradients, clip, update, schedule.
    """

    def __init__(self, settings: Settings):
        self._steps, self._now, self._seconds = settings.steps, settings.now, 0.0
        self._losses: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A batch is there."""
        if state.global_step % self._steps == 0:
            Parent().wait()
        _synchronize()
        self._start = self._now()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """It was trained on."""
        _synchronize()
        self._seconds += self._now() - self._start

    def on_log(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """After every step."""
        logs: dict[str, Any] = more["logs"]
        if "loss" not in logs:
            return
        self._losses.append(logs["loss"])
        if state.global_step % self._steps == 0:
            Parent().answer(seconds=self._seconds, losses=self._losses, peak=peak_memory())
            self._seconds, self._losses = 0.0, []


def peak_memory() -> int:
    """Bytes, of the card or of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def work(what: str, settings: Settings) -> None:
    """A worker's whole life."""
    limit_threads(settings.device, settings.threads)
    torch.set_num_threads(settings.threads)
    model = make_model(settings.directory, **settings.rates)
    model.load_state_dict(load_file(settings.adapter), strict=False)  # not strict: the base stays as it is
    vocabulary = settings.scratch / "vocab.json"
    special = ["<pad>", "<s>", "</s>", "<unk>", "|"]
    assert len(special) == SPECIAL
    vocabulary.write_text(json.dumps({token: i for i, token in enumerate([*special, *LETTERS])}))
    {"peer": _step, "peer_files": _files}[what](settings, model, processor_of(vocabulary))


def _arguments(settings: Settings, **more: Any) -> transformers.TrainingArguments:
    return transformers.TrainingArguments(
        output_dir=str(settings.scratch / "peer"),
        per_device_train_batch_size=settings.batch,
        learning_rate=LEARNING_RATE,
        gradient_checkpointing=settings.remat,  # transformers 5.2x calls it activation_checkpointing, and knows both
        fp16=settings.dtype == "float16",
        bf16=settings.dtype == "bfloat16",
        use_cpu=settings.device == "cpu",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **more,
    )


def _step(settings: Settings, model: Any, processor: Any) -> None:
    rows = Cycle(make_batches(settings), num_batches=settings.total_steps)
    arguments = _arguments(
        settings, max_steps=settings.total_steps, logging_steps=1, train_sampling_strategy="sequential"
    )
    make_trainer(model, processor, rows, arguments, callbacks=[Rounds(settings)]).train()
    Parent().wait()


def _files(settings: Settings, model: Any, processor: Any) -> None:
    """A round is an epoch over what was prepared before, which the first round counts."""
    Parent().wait()
    start = settings.now()
    rows = prepared_data(settings.scratch / "data" / "train", processor)
    prepared = settings.now() - start
    audio = sum(rows["input_length"]) / RATE
    by_length = {"train_sampling_strategy": "group_by_length", "length_column_name": "input_length"}
    trainer = make_trainer(
        model, processor, rows, _arguments(settings, num_train_epochs=1, logging_steps=10, **by_length)
    )
    while True:
        start = settings.now()
        trainer.train()
        Parent().answer(seconds=settings.now() - start, audio=audio, prepared=prepared, peak=peak_memory())
        Parent().wait()
