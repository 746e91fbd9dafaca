"""The benchmark program without its clock: what is counted, what is refused, what is written down. No timing here."""

import argparse
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch._dynamo.exc import TorchDynamoException
from torch.utils.flop_counter import FlopCounterMode

from experiments.benchmarks import __main__ as program
from experiments.benchmarks import asr_forward, chart, device, report, tts
from experiments.benchmarks.asr_peers import Recognizer
from experiments.benchmarks.flops import RATE, forward_gflops, speech_gflops
from experiments.benchmarks.report import Contender, DifferenceError, Report
from experiments.benchmarks.tts_peers import Speaker
from mms_jax.config import VitsConfig, Wav2Vec2Config

MMS_1B = Wav2Vec2Config(
    hidden_size=1280,
    num_hidden_layers=48,
    num_attention_heads=16,
    intermediate_size=5120,
    feat_extract_norm="layer",
    do_stable_layer_norm=True,
    adapter_attn_dim=16,
    vocab_size=154,
)
SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "conv_dim": (32,) * 7,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "adapter_attn_dim": 8,
    "vocab_size": 32,
}
# Of the count that PyTorch makes; recognition has 5e-4 less: the frame that an even positional kernel gives besides.
SLACK = 1e-3
LIMIT = 2e9  # FLOP/s, in these tests


def counted(model: torch.nn.Module, *inputs: torch.Tensor) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(*inputs)
    return counter.get_total_flops() / 1e9


def test_recognition_costs_what_pytorch_counts():
    seconds = 2.0
    config = transformers.Wav2Vec2Config(**SMALL)
    config._attn_implementation = "eager"  # products that are counted
    model = transformers.Wav2Vec2ForCTC(config)
    expected = counted(model, torch.randn(1, int(seconds * RATE)))
    formula = seconds * forward_gflops(Wav2Vec2Config(**SMALL), seconds=seconds)
    assert formula == pytest.approx(expected, rel=SLACK)


def test_synthesis_costs_what_pytorch_counts():
    torch.manual_seed(0)
    config = transformers.VitsConfig(vocab_size=30)
    model = transformers.VitsModel(config).eval()
    symbols = torch.randint(0, 30, (1, 41))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        waveform = model(symbols).waveform
    frames = waveform.shape[1] // VitsConfig().hop_length
    formula = speech_gflops(VitsConfig(vocab_size=30), num_symbols=41, num_frames=frames)
    assert formula == pytest.approx(counter.get_total_flops() / 1e9, rel=SLACK)


def test_published_shapes_cost_what_the_notes_say():
    assert forward_gflops(MMS_1B, seconds=10) == pytest.approx(107.0, rel=0.002)
    assert forward_gflops(MMS_1B, seconds=60) == pytest.approx(137.7, rel=0.002)
    assert speech_gflops(VitsConfig(), num_symbols=150, num_frames=625) / 10 == pytest.approx(39.5, rel=0.005)


@pytest.fixture
def times(monkeypatch) -> list[list[float]]:
    """What every timing of the test will be."""
    values: list[list[float]] = []
    monkeypatch.setattr(report, "measure", lambda functions, rounds, *, pause: values)
    return values


def new_report(what: str = "asr") -> Report:
    about = {"device": "a device avx2", "kind": "cpu", "threads": 2, "versions": {"jax": "1"}, "load": 0.0}
    about |= {"date": "2026-01-01T00:00:00+00:00", "command": "python -m experiments.benchmarks asr"}
    return Report(what, about, {"float32": LIMIT, "int8": 2 * LIMIT})


def contender(library: str, dtype: str = "float32", setting: str = "") -> Contender:
    return Contender(library, setting, dtype, lambda: None, 0.0)


def two_rows(times: list[list[float]]) -> Report:
    times[:] = [[4.0, 2.0, 3.0], [1.0, 1.0, 7.0]]
    made = new_report()
    made.time("1 x 6 s", [contender("transformers"), contender("mms_jax", "int8")], rounds=3, audio_seconds=6, gflops=3)
    return made


def test_a_row_holds_median_quartiles_ratio_speed_and_share_of_the_limit(times):
    theirs, ours = two_rows(times).rows
    assert (theirs.median, theirs.quartiles, theirs.ratio) == (3.0, (2.5, 3.5), 1.0)
    assert (ours.median, ours.ratio, ours.realtime) == (1.0, 3.0, 6.0)
    assert theirs.share == pytest.approx(3e9 / 3.0 / LIMIT)
    assert ours.share == pytest.approx(3e9 / 1.0 / (2 * LIMIT))


def test_a_report_comes_back_from_its_file(times, tmp_path):
    made = two_rows(times)
    made.note("something: not installed")
    made.save(tmp_path / "asr.json")
    (again,) = report.load([tmp_path / "asr.json"])
    assert json.loads(json.dumps(again.rows[1].__dict__)) == json.loads(json.dumps(made.rows[1].__dict__))
    assert (again.environment, again.limits, again.notes) == (made.environment, made.limits, made.notes)


def test_the_markdown_table_has_every_row_its_command_and_what_was_left_out(times):
    made = two_rows(times)
    made.note("something: not installed")
    text = "\n".join(report.markdown(made))
    assert "| 1 x 6 s: mms_jax | int8 | 1 s | 1 to 4 s | **3.00** | 6 | 75% |" in text
    assert "| 1 x 6 s: transformers | float32 | 3 s |" in text
    assert made.environment["command"] in text
    assert "something: not installed" in text


def test_the_chart_shows_everybody_once_and_the_work_that_was_asked_for(times, tmp_path, monkeypatch):
    made = two_rows(times)
    times[:] = [[3.1], [0.5]]
    made.time("1 x 6 s", [contender("transformers"), contender("mms_jax")], rounds=1, audio_seconds=6, gflops=3)
    made.time("8 x 6 s", [contender("transformers"), contender("mms_jax")], rounds=1, audio_seconds=6, gflops=3)
    drawn = [(row.name, row.dtype, row.median) for row in chart.bars(made, "1 x 6 s")]
    assert drawn == [("transformers", "float32", 3.0), ("mms_jax", "int8", 1.0), ("mms_jax", "float32", 0.5)]
    with pytest.raises(SystemExit, match="9 x 6 s"):
        chart.bars(made, "9 x 6 s")
    made.save(tmp_path / "asr.json")
    arguments = ["chart", str(tmp_path / "asr.json"), "--output", str(tmp_path / "speed.png")]
    monkeypatch.setattr("sys.argv", arguments)
    chart.main()
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")


def recognizer(library: str, logits: np.ndarray, text: str = "a") -> Recognizer:
    return Recognizer(library, "", "float32", lambda waves: [logits] * len(waves), lambda waves: [text] * len(waves))


WAVES = [np.zeros(400, np.float32)]
LOGITS = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)


@pytest.mark.parametrize(
    "wrong",
    [
        recognizer("wrong", LOGITS * 1.001),
        recognizer("wrong", LOGITS * np.float32("nan")),
        recognizer("wrong", LOGITS, text="b"),
    ],
)
def test_recognition_that_is_not_equal_is_not_timed(wrong):
    with pytest.raises(DifferenceError, match="wrong"):
        list(asr_forward.checked(new_report(), [recognizer("right", LOGITS), wrong], WAVES))


def test_a_compiler_that_fails_is_told_of_in_one_line_and_left_out(capsys):
    def fail(_) -> list[str]:
        raise TorchDynamoException("no compiler here\nmany lines more")

    broken = Recognizer("transformers", "torch.compile", "float32", lambda _: [LOGITS], fail)
    made = new_report()
    left = list(asr_forward.checked(made, [recognizer("right", LOGITS), broken], WAVES))
    assert [one.library for one in left] == ["right"]
    assert made.notes == ["transformers torch.compile float32: no compiler here"]
    assert "no compiler here\n" in capsys.readouterr().out


def test_speech_that_is_not_equal_is_not_timed():
    def speaker(waveform: np.ndarray) -> Speaker:
        return Speaker("one", "", "float32", lambda texts: [waveform])

    right = np.sin(np.arange(500, dtype=np.float32))
    for wrong in (right + 0.001, right[:-1]):
        with pytest.raises(DifferenceError):
            list(tts.checked(new_report(), [speaker(right), speaker(wrong)], ["a"], [right]))


def test_what_is_not_installed_is_named_with_the_extra_that_has_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sherpa_onnx" else object())
    assert device.missing("onnx") is None
    assert device.missing("onnx", "sherpa_onnx") == "sherpa_onnx not installed: pip install -e '.[bench]'"
    assert asr_forward.unavailable("ONNX Runtime int8-s8", "gpu") is not None
    assert asr_forward.unavailable("mms_jax int8", "gpu") is None


def test_a_gpu_that_is_not_there_ends_the_program_with_a_reason(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    parser = argparse.ArgumentParser()
    device.add_arguments(parser, rounds=5)
    with pytest.raises(SystemExit, match="finds no GPU"):
        device.prepare(parser.parse_args(["--device", "gpu"]))


def test_results_that_could_not_be_written_are_refused_before_the_work(tmp_path):
    parser = argparse.ArgumentParser()
    device.add_arguments(parser, rounds=5)
    with pytest.raises(SystemExit, match="there is no folder"):
        device.prepare(parser.parse_args(["--output", str(tmp_path / "not there" / "asr.json")]))


def test_functions_take_turns_and_the_first_turn_is_not_counted():
    called: list[str] = []
    times = device.measure([lambda: called.append("a"), lambda: called.append("b")], 2)
    assert called == ["a", "b"] * 3
    assert [len(own) for own in times] == [2, 2]


def test_every_benchmark_that_the_program_names_is_there():
    folder = Path(program.__file__).parent
    assert [name for name in program.MODULES.values() if not (folder / f"{name}.py").exists()] == []
