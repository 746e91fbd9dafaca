"""What both sides of train.py share: the checkpoint, the clips, the settings."""

from __future__ import annotations

import csv
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import mms_jax
from mms_jax.checkpoint import save_adapter
from mms_jax.config import Wav2Vec2Config
from mms_jax.models.trees import unstack_layers
from mms_jax.training.state import fresh_adapter

WORK = Path(".work")
RATE = 16_000
LANGUAGE = "xyz"
SIZES: dict[str, dict[str, int]] = {  # beside the demo's; what is not said is the same in all MMS models
    "100m": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "1b": {"hidden_size": 1280, "num_hidden_layers": 48, "num_attention_heads": 16, "intermediate_size": 5120},
}
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SPECIAL = 5  # tokens before the letters
LETTERS_PER_SECOND = 12  # of speech
DROPOUTS = ("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout")
BATCHES = 4  # that a timing goes round
LEARNING_RATE = 1e-3  # as in the README of transformers' example


@dataclass(frozen=True)
class Settings:
    """One way of training, the same for both sides but for what they call it."""

    size: str
    device: str = "cpu"
    seconds: float = 4.0  # of the longest clip of a batch
    shortest: float = 0.6  # of that: lengths are uniform between the two
    batch: int = 8
    clips: int = 64  # of the data set
    dtype: str = "float32"
    remat: bool = False
    dropout: float = 0.0
    rounds: int = 5
    steps: int = 2  # of a round
    threads: int = 2
    cpu_time: bool = False

    def now(self) -> float:
        """Seconds: of a clock, or of processor time, for machines that are busy with something else."""
        return time.process_time() if self.cpu_time else time.perf_counter()

    @property
    def total_steps(self) -> int:
        """Of a whole timing: one round more, which is not timed."""
        return (self.rounds + 1) * self.steps

    @property
    def directory(self) -> Path:
        """Of the checkpoint."""
        return mms_jax.DEMO_MODEL if self.size == "demo" else WORK / f"bench-train-{self.size}"

    @property
    def scratch(self) -> Path:
        """Of everything that is made for a run."""
        return WORK / "bench-train" / self.size

    @property
    def adapter(self) -> Path:
        """Where both sides' training begins."""
        return self.scratch / f"adapter.{LANGUAGE}.safetensors"

    @property
    def rates(self) -> dict[str, Any]:
        """Of both configs: what is random beside dropout is off, so that both sides compute the same."""
        off = {"layerdrop": 0.0, "mask_time_prob": 0.0, "mask_feature_prob": 0.0, "final_dropout": 0.0}
        return off | dict.fromkeys(DROPOUTS, self.dropout) | {"ctc_loss_reduction": "mean"}

    @property
    def config(self) -> Wav2Vec2Config:
        """Of training."""
        there = json.loads((self.directory / "config.json").read_text())
        return Wav2Vec2Config.from_dict(there).replace(**self.rates)


def write_adapter(settings: Settings) -> None:
    """Where training begins: a fresh adapter and head."""
    tree = unstack_layers(fresh_adapter(settings.config, vocab_size=settings.config.vocab_size, seed=0))
    save_adapter(settings.adapter, config=settings.config, params=tree)


class Clip(NamedTuple):
    """What is trained on."""

    waveform: np.ndarray  # float32 [S]
    text: str

    @property
    def labels(self) -> np.ndarray:
        """Its letters' tokens."""
        return np.array([SPECIAL + LETTERS.index(letter) for letter in self.text], np.int32)


def make_clips(settings: Settings, count: int, *, seed: int) -> list[Clip]:
    """Noise as long as speech would be for as many letters; the first is the longest."""
    rng = np.random.default_rng(seed)
    lengths = rng.uniform(settings.shortest, 1.0, count) * settings.seconds
    lengths[0] = settings.seconds
    return [
        Clip(
            (rng.normal(size=int(length * RATE)) * 0.1).astype(np.float32),
            "".join(rng.choice(list(LETTERS), size=int(length * LETTERS_PER_SECOND))),
        )
        for length in lengths
    ]


def make_batches(settings: Settings) -> list[list[Clip]]:
    """Those that a timing goes round, all padded to one length."""
    return [make_clips(settings, settings.batch, seed=seed) for seed in range(BATCHES)]


def audio_seconds(clips: list[Clip]) -> float:
    """Of clips, without padding."""
    return sum(len(clip.waveform) for clip in clips) / RATE


def write_data_set(settings: Settings) -> Path:
    """An audio folder: Opus files, as the bundled data has them, and metadata.csv."""
    import soundfile

    folder = settings.scratch / "data" / "train"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    rows = [("file_name", "text")]
    for number, (waveform, text) in enumerate(make_clips(settings, settings.clips, seed=BATCHES)):
        soundfile.write(folder / f"{number:04}.opus", waveform, RATE, format="OGG", subtype="OPUS")
        rows.append((f"{number:04}.opus", text))
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return folder.parent
