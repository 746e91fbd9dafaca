"""Files to texts: beside transformers' pipeline, how much of a batch is padding, and what the host does for it.

    python -m experiments.benchmarks files --size 1b --rounds 5 --output files.json
    python -m experiments.benchmarks files --size tiny --only padding host

``pipeline``: eight 16-bit files (WAV and FLAC in turn) of 1 to 30 s. Ours is ``transcribe(files)``; transformers'
``pipeline`` has the same files decoded by soundfile, which is timed too, in one batch of eight and one by one (nothing
is padded then). float32: texts must be equal; bfloat16 and int8, where random weights have near ties: the logits of
each clip, as in ``asr``. ``padding``: 200 lengths of 1 to 30 s, what is padded to a bucket beside what is speech.
``host``: processor time of everything but the model, per second of audio, for WAV and FLAC (16 bits, 16 kHz) and MP3
(44.1 kHz): reading, decoding, resampling, batching, normalising, collapsing, text. The clips are bundled speech.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import soundfile
import soxr
import torch
import transformers

import mms_jax
from experiments.benchmarks.asr_forward import SIZES, TOLERANCE, build, difference
from experiments.benchmarks.asr_peers import RATE
from experiments.benchmarks.device import add_arguments, environment, limits, prepare, torch_device
from experiments.benchmarks.flops import forward_gflops
from experiments.benchmarks.report import Contender, DifferenceError, Report
from mms_jax.features import bucket_length
from mms_jax.pipelines.demo import demo_clips
from mms_jax.pipelines.greedy import collapse
from mms_jax.pipelines.waveforms import model_input

LENGTHS = (1.3, 3.1, 5.6, 8.7, 12.4, 17.2, 23.5, 29.1)  # seconds: eight clips of 1 to 30 s
MIX = (1.0, 30.0)  # seconds, between which lengths are drawn evenly
NUM_LENGTHS = 200
FORMATS = {"WAV": ("WAV", "PCM_16", RATE), "FLAC": ("FLAC", "PCM_16", RATE), "MP3": ("MP3", None, 44_100)}
HOST_CLIPS = 32  # of the mix, in every format
SPEED = 100  # times real time, at which the host's share of a core is told
FRAMES_PER_TOKEN = 3  # of what stands in for the model's answer: 17 letters a second
PARTS = ("pipeline", "padding", "host")


def main() -> None:
    """Run the parts that are wanted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=5)
    parser.add_argument("--size", choices=SIZES, default="1b")
    parser.add_argument("--dtypes", nargs="+", choices=TOLERANCE, default=["bfloat16", "int8"], help="of this library")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    prepare(options)
    directory = Path(".work") / f"bench-{options.size}"
    if not (directory / "model.safetensors").exists():
        build(directory, SIZES[options.size])
    timed = "pipeline" in options.only
    report = Report("files", environment(options), limits(options.dtypes, options.device) if timed else {})
    if "padding" in options.only:
        report.environment["padding"] = told(padding(np.random.default_rng(0)))
    with tempfile.TemporaryDirectory() as folder:
        if "host" in options.only:
            report.environment["host"] = [told(one) for one in host_work(Path(folder), rounds=options.rounds)]
        if timed:
            report.start()
            compare(report, options, directory, write_clips(Path(folder), LENGTHS, ["WAV", "FLAC"]))
    report.save(options.output)


def told(values: dict[str, Any]) -> dict[str, Any]:
    """The same, printed."""
    print(
        ", ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
        )
    )
    return values


# ------------------------------------------------------------------------------------------------------------- padding


def padding(rng: np.random.Generator, *, count: int = NUM_LENGTHS) -> dict[str, Any]:
    """Seconds of padding for each second of audio: of our buckets, and of batches of eight as they come."""
    lengths = (rng.uniform(*MIX, count) * RATE).astype(int).tolist()
    buckets = [bucket_length(length) for length in lengths]
    eights = [lengths[start : start + 8] for start in range(0, count, 8)]
    audio = sum(lengths)
    return {
        "clips": count,
        "audio_seconds": audio / RATE,
        "shapes": len(set(buckets)),
        "waste": sum(buckets) / audio - 1,
        "waste_to_the_longest_of_eight": sum(max(eight) * len(eight) for eight in eights) / audio - 1,
    }


# ---------------------------------------------------------------------------------------------------------------- host


def host_work(folder: Path, *, rounds: int) -> Iterator[dict[str, Any]]:
    """What files of each format cost beside the model; medians."""
    asr = mms_jax.load_asr(mms_jax.DEMO_MODEL, language="spa")
    without_model(asr)
    seconds = np.random.default_rng(0).uniform(*MIX, HOST_CLIPS)
    for name in FORMATS:
        paths = write_clips(folder, seconds, [name])
        asr.transcribe(paths)  # compiles what stands in for the model
        times = [processor_time(lambda paths=paths: asr.transcribe(paths)) for _ in range(rounds)]
        decoding = [processor_time(lambda paths=paths: [soundfile.read(path) for path in paths]) for _ in range(rounds)]
        per_second = statistics.median(times) / seconds.sum()
        yield {
            "format": name,
            "ms_per_audio_second": per_second * 1e3,
            f"share_of_a_core_at_{SPEED}x": per_second * SPEED,
            "of_it_decoding_by_soundfile_alone": statistics.median(decoding) / seconds.sum() * SPEED,
        }


def processor_time(function: Callable[[], Any]) -> float:
    """Seconds of all threads of this process."""
    start = time.process_time()
    function()
    return time.process_time() - start


def without_model(asr: mms_jax.SpeechRecognizer) -> None:
    """Put constant best tokens in place of the model; all that is around it in its program stays."""
    config, extractor = asr.config, asr.feature_extractor

    @jax.jit
    def around(samples: jax.Array, num_samples: jax.Array, reading: jax.Array) -> dict[str, jax.Array]:
        values, _ = model_input(samples, num_samples, extractor=extractor)
        frames = jnp.arange(config.num_frames(samples.shape[1]))
        letters = 5 + frames // FRAMES_PER_TOKEN % 20
        row = jnp.where(frames % FRAMES_PER_TOKEN, letters, config.pad_token_id).astype(jnp.int32)
        ids = jnp.broadcast_to(row, (len(samples), len(frames)))
        collapsed = collapse(ids, reading, vocab_size=config.vocab_size)
        return {"tokens": collapsed.ids, "edges": collapsed.edges, "finite": jnp.isfinite(values).all(axis=1)}

    def executable(*_: Any) -> Callable[..., dict[str, jax.Array]]:
        return lambda base, adapters, *arguments: around(*arguments)

    recognition: Any = asr._recognition
    recognition._executable = executable


# ------------------------------------------------------------------------------------------------------------ pipeline


def write_clips(folder: Path, seconds: Sequence[float] | np.ndarray, formats: Sequence[str]) -> list[Path]:
    """Files of bundled speech, clip after clip, of these lengths and of each format in turn."""
    speech = np.concatenate([mms_jax.audio.load_audio(clip.path) for clip in demo_clips()])
    paths = []
    for number, length in enumerate(seconds):
        container, codec, rate = FORMATS[formats[number % len(formats)]]
        samples = np.resize(np.roll(speech, -number * RATE), int(length * RATE))
        paths.append(folder / f"{'-'.join(formats)}-{number}.{container.lower()}")
        soundfile.write(paths[-1], soxr.resample(samples, RATE, rate), rate, format=container, subtype=codec)
    return paths


def compare(report: Report, options: argparse.Namespace, directory: Path, paths: list[Path]) -> None:
    """Rows of the pipeline and of ours in every dtype."""
    processor: Any = transformers.Wav2Vec2Processor.from_pretrained(directory)
    dtype = "float32" if options.dtypes == ["float32"] else "bfloat16"
    report.limits.setdefault(dtype, limits([dtype], options.device)[dtype])
    model: Any = transformers.Wav2Vec2ForCTC.from_pretrained(directory, dtype=getattr(torch, dtype)).eval()
    device = torch_device(options)
    pipeline: Any = transformers.pipeline(
        "automatic-speech-recognition",
        model=model.to(device),
        tokenizer=processor.tokenizer,
        feature_extractor=processor.feature_extractor,
        dtype=model.dtype,
        device=device,
    )

    def theirs(batch_size: int) -> list[str]:
        clips = [{"raw": read(path), "sampling_rate": RATE} for path in paths]
        return [result["text"] for result in pipeline(clips, batch_size=batch_size)]

    def their_logits(path: Path) -> np.ndarray:
        inputs = processor(read(path), sampling_rate=RATE, return_tensors="pt").to(device, model.dtype)
        with torch.inference_mode():
            return model(inputs.input_values).logits[0].float().cpu().numpy()

    # Of a batch their pipeline reads the padding too, so texts are compared with those of clips one by one.
    expected, texts = [their_logits(path) for path in paths], theirs(1)
    contenders = [
        Contender("transformers", f"pipeline, batches of {size}", dtype, lambda size=size: theirs(size), 0.0)
        for size in (len(paths), 1)
    ]
    for own in options.dtypes:
        contenders.append(ours(directory, own, paths, expected, texts if own == "float32" else None))
    gflops = sum(
        forward_gflops(mms_jax.config.Wav2Vec2Config.from_file(directory / "config.json"), seconds=s) * s
        for s in LENGTHS
    )
    work = f"{len(paths)} files, {LENGTHS[0]:g}-{LENGTHS[-1]:g} s"
    report.time(work, contenders, rounds=options.rounds, audio_seconds=sum(LENGTHS), gflops=gflops)


def ours(
    directory: Path, dtype: str, paths: list[Path], expected: list[np.ndarray], texts: list[str] | None
) -> Contender:
    """This library, whose results are those expected; of float32 the texts too."""
    asr = mms_jax.load_asr(directory, dtype=dtype)
    start = time.perf_counter()
    found = [result.text for result in asr.transcribe(paths)]
    first = time.perf_counter() - start
    error = difference(asr.logits(paths), expected)
    if not error <= TOLERANCE[dtype] or (texts is not None and found != texts):
        raise DifferenceError(f"mms_jax {dtype}: {error:.1e} from transformers, texts equal: {found == texts}")
    return Contender("mms_jax", "transcribe(files)", dtype, lambda: asr.transcribe(paths), error, first)


def read(path: Path) -> np.ndarray:
    """Samples as transformers' users read them where no ffmpeg is wanted: float32 [S]."""
    return soundfile.read(path, dtype="float32")[0]


if __name__ == "__main__":
    main()
