"""Voices of the original VITS, converted, speak as they did; back again, they are what they were; the rest is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

import mms_jax
from convert.conversion import Conversion, ConversionError
from convert.vits import convert_vits, vits_to_original
from convert.vits_names import PHONEMES
from mms_jax.errors import CheckpointError, TextError
from tests.tts_checkpoints import Reference, load
from tests.vits_originals import (
    CASES,
    MANY,
    MMS,
    SENTENCE,
    SYMBOLS,
    State,
    changed,
    discriminator_state,
    lines,
    original,
    original_config,
    random_voice,
    reconfigured,
    save_original,
    save_torch,
    spelled,
    state_of,
    voice,
    write,
)
from tests.vits_parity import LIMITS

# Everything is the same to the last bit up to the decoder. Its kernels are rounded once more than those they are
# compared with, by 6e-8 of their size, and so is what they give; seen: 3e-7, of waveforms up to 0.6.
WAVEFORM_LIMIT = 2e-6
KERNEL_LIMIT = 1e-7  # of a kernel's greatest element: one rounding to float32


def converted(directory: Path, case: str = MMS, **config: Any) -> Path:
    return write(convert_vits(original(directory, case, **config), language="eng"), directory / "converted")


def read_all(conversion: Conversion) -> dict[str, np.ndarray]:
    """The values of what becomes of a voice, on either way."""
    objects = conversion.objects.get("G_0.pth", {"model": {}})
    parts = [*conversion.tensors.get("model.safetensors", ()), *objects["model"].values()]
    return {part.target: part.read() for part in parts}


@torch.no_grad()
def speak(model: Any, case: str) -> Any:
    """What a transformers model says without noise."""
    model.noise_scale = model.noise_scale_duration = 0.0
    ids = torch.arange(3 * len(SYMBOLS)).remainder(len(SYMBOLS))[None]
    return model(ids, speaker_id=1 if "num_speakers" in CASES[case] else None)


@pytest.mark.parametrize("case", CASES)
def test_transformers_speaks_as_the_original_did(tmp_path: Path, case: str):
    model = transformers.VitsModel.from_pretrained(converted(tmp_path, case)).eval()
    expected, actual = speak(voice(case), case), speak(model, case)
    assert torch.equal(actual.spectrogram, expected.spectrogram)
    assert 0.05 < expected.waveform.abs().max() < 0.999
    assert (actual.waveform - expected.waveform).abs().max() < WAVEFORM_LIMIT


@pytest.mark.parametrize("case", CASES)
def test_every_tensor_is_used_once_and_every_parameter_written(tmp_path: Path, case: str):
    conversion = convert_vits(original(tmp_path, case), language=None)
    parts = conversion.tensors["model.safetensors"]
    assert sorted(name for part in parts for name in part.sources) == sorted(state_of(case))
    expected = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tuple(value.shape)
        for name, value in voice(case).state_dict().items()
    }
    assert {part.target: part.shape for part in parts} == expected
    assert len(parts) == len(expected)
    assert {part.dtype for part in parts} == {np.dtype(np.float32)}


def test_only_the_decoder_is_computed_and_the_rest_keeps_its_bits(tmp_path: Path):
    folded = 0
    for part in convert_vits(original(tmp_path), language=None).tensors["model.safetensors"]:
        sources = [state_of()[name].numpy() for name in part.sources]
        if len(sources) == 1:
            assert np.array_equal(part.read(), sources[0].reshape(part.shape))
            continue
        folded += 1
        assert part.target.startswith("decoder.")
        gain, direction = (source.astype(np.longdouble) for source in sources)
        kernel = gain * direction / np.sqrt((direction**2).sum((1, 2), keepdims=True))
        assert np.array_equal(part.read(), kernel.astype(np.float32))
    assert folded == len(voice().decoder.upsampler) + 6 * len(voice().decoder.resblocks)


def test_load_tts_speaks_with_it(tmp_path: Path):
    directory = converted(tmp_path, MANY)
    quiet = {"noise_scale": 0.0, "noise_scale_duration": 0.0}
    speech = load(directory).synthesize(SENTENCE, speaker=2, **quiet)
    expected = Reference(directory).speak(SENTENCE, speaker=2, **quiet)
    assert speech.dropped == ""
    assert np.abs(speech.waveform - expected).max() < LIMITS["waveform"]


@pytest.mark.parametrize("case", CASES)
def test_the_configuration_is_that_of_the_original_config(tmp_path: Path, case: str):
    conversion = convert_vits(original(tmp_path, case), language=None)
    values, expected = conversion.texts["config.json"], voice(case).config
    assert isinstance(values, dict)
    for name, value in values.items():
        if name not in ("architectures", "dtype"):
            wanted = getattr(expected, name)
            assert json.loads(json.dumps(value)) == json.loads(json.dumps(wanted)), name
    assert values["architectures"] == ["VitsModel"]


def test_settings_that_differ_from_everybodys_are_taken_over(tmp_path: Path):
    def change(values: dict) -> None:
        values["data"] |= {"sampling_rate": 22050, "add_blank": False}
        values["model"]["p_dropout"] = 0.25

    texts = convert_vits(reconfigured(tmp_path, change), language="deu").texts
    config, tokenizer = texts["config.json"], texts["tokenizer_config.json"]
    assert isinstance(config, dict)
    assert isinstance(tokenizer, dict)
    assert config["sampling_rate"] == 22050
    assert {config[f"{name}_dropout"] for name in ("hidden", "attention", "activation")} == {0.25}
    assert tokenizer["add_blank"] is False
    assert tokenizer["language"] == "deu"


@pytest.mark.parametrize("uroman", [False, True])
def test_symbols_are_the_lines_and_romanisation_is_the_training_files(tmp_path: Path, uroman: bool):
    directory = converted(tmp_path, uroman=uroman)
    theirs, ours = transformers.VitsTokenizer.from_pretrained(directory), load(directory).tokenizer
    assert dict(ours.vocab) == {symbol: id_ for id_, symbol in enumerate(SYMBOLS)}
    assert theirs.is_uroman == ours.is_uroman == uroman
    assert (theirs.pad_token, theirs.phonemize, theirs.add_blank, theirs.language) == ("k", False, True, "eng")
    text = "o\u00a0h\u2028a\x0bi\x85l–"
    if not uroman:
        assert list(ours.encode(text).ids) == theirs(text)["input_ids"]
        assert ours.encode(text).ids[1::2] == tuple(SYMBOLS.index(char) for char in text)


@pytest.mark.parametrize("content", [lines(*SYMBOLS).replace(b"\n", b"\r\n"), lines(*SYMBOLS).removesuffix(b"\n")])
def test_how_lines_end_does_not_matter(tmp_path: Path, content: bytes):
    conversion = convert_vits(spelled(tmp_path, content), language=None)
    assert json.loads(conversion.texts["vocab.json"]) == {symbol: id_ for id_, symbol in enumerate(SYMBOLS)}


def test_of_equal_symbols_the_last_is_spoken_and_empty_ones_never(tmp_path: Path):
    symbols = list(SYMBOLS)
    symbols[5], symbols[9] = symbols[12], ""
    directory = tmp_path / "converted"
    conversion = convert_vits(spelled(tmp_path, lines(*symbols)), language="eng")
    tokenizer = load(write(conversion, directory)).tokenizer
    assert tokenizer.encode(symbols[12]).ids == (0, 12, 0)
    assert sorted(tokenizer.vocab.values()) == list(range(len(symbols)))
    assert "line(s) 6, 10 are empty or come again" in conversion.notes[0]


def test_the_highest_step_is_taken_and_said(tmp_path: Path):
    source = original(tmp_path)
    (source / "G_100.pth").rename(source / "G_99.pth")
    other = {name: tensor + 1 for name, tensor in state_of().items()}
    save_torch(source / "G_1000.pth", other)
    conversion = convert_vits(source, language="eng")
    assert np.array_equal(read_all(conversion)["flow.flows.0.conv_pre.bias"], other["flow.flows.0.pre.bias"])
    assert any("G_1000.pth has the highest step" in note and "G_99.pth" in note for note in conversion.notes)
    chosen = convert_vits(source / "G_99.pth", language="eng")
    assert np.array_equal(read_all(chosen)["flow.flows.0.conv_pre.bias"], state_of()["flow.flows.0.pre.bias"])
    assert chosen.notes == []


def test_what_is_left_out_is_listed_with_the_reason(tmp_path: Path):
    source = original(tmp_path)
    save_torch(source / "G_100.pth", state_of(), scaler={"scale": 2.0})
    unused = convert_vits(source, language=None).unused
    assert set(unused) == {f"G_100.pth: {key}" for key in ("iteration", "optimizer", "learning_rate", "scaler")}
    assert all(unused.values())


def renamed(state: State) -> None:
    for name in list(state):
        for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
            if name.endswith(old):
                state[f"{name.removesuffix(old)}parametrizations.weight.{new}"] = state.pop(name)


def test_the_new_spelling_of_weight_norms_gives_the_same(tmp_path: Path):
    expected = read_all(convert_vits(original(tmp_path), language=None))
    actual = read_all(convert_vits(changed(tmp_path, renamed), language=None))
    assert actual.keys() == expected.keys()
    assert all(np.array_equal(actual[name], expected[name]) for name in expected)


def unnormed(state: State) -> None:
    for name in [name for name in state if name.endswith("weight_g")]:
        gain, direction = state.pop(name).double(), state.pop(f"{name[:-1]}v").double()
        norm = direction.flatten(1).norm(dim=1)[:, None, None]
        state[name.removesuffix("_g")] = (gain * direction / norm).float()


def test_weight_norms_taken_off_before_saving_are_put_back_where_the_layout_has_them(tmp_path: Path):
    expected = read_all(convert_vits(original(tmp_path), language=None))
    actual = read_all(convert_vits(changed(tmp_path, unnormed), language=None))
    assert actual.keys() == expected.keys()
    for name in expected:
        if not name.endswith("weight_v"):
            assert np.abs(actual[name] - expected[name]).max() <= KERNEL_LIMIT * max(1, np.abs(expected[name]).max())
    assert any(name.endswith("weight_v") for name in expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_whatever_is_stored_is_written_as_float32_that_both_sides_compute_in(tmp_path: Path, dtype: torch.dtype):
    def narrow(state: State) -> None:
        state |= {name: tensor.to(dtype) for name, tensor in state.items()}

    values = read_all(convert_vits(changed(tmp_path, narrow), language=None))
    assert {value.dtype for value in values.values()} == {np.dtype(np.float32)}
    expected = state_of()["enc_p.emb.weight"].to(dtype).float()
    assert np.array_equal(values["text_encoder.embed_tokens.weight"], expected)


def test_discriminators_are_kept_for_fine_tuning_with_their_weight_norms_and_go_back(tmp_path: Path):
    source, state = original(tmp_path), discriminator_state()
    save_torch(source / "D_100.pth", {name: tensor.contiguous() for name, tensor in state.items()})
    conversion = convert_vits(source, language="eng")
    parts = conversion.tensors["discriminator.safetensors"]
    sources = {part.target: part.sources for part in parts}
    assert sources["discriminator.discriminators.3.convs.4.weight_g"] == ("discriminators.3.convs.4.weight_g",)
    assert sources["discriminator.discriminators.0.final_conv.bias"] == ("discriminators.0.conv_post.bias",)
    assert sorted(name for part in parts for name in part.sources) == sorted(state)
    assert "D_100.pth: optimizer" in conversion.unused
    directory = write(conversion, tmp_path / "converted")
    back = vits_to_original(directory).objects["D_0.pth"]["model"]
    assert sorted(back) == sorted(state)
    for name, part in back.items():
        assert np.array_equal(part.read(), state[name]), name
    # Nobody who loads the voice is disturbed by the file.
    assert load(directory).language == "eng"
    assert transformers.VitsModel.from_pretrained(directory).config.vocab_size == len(SYMBOLS)


def test_phonemes_of_the_published_english_voices_are_read_if_given(tmp_path: Path):
    model = random_voice(vocab_size=len(PHONEMES))
    source = save_original(tmp_path / "original", model)
    values = original_config(model.config)
    values["data"] |= {"text_cleaners": ["english_cleaners2"], "training_files": "filelists/train.txt.cleaned"}
    (source / "config.json").write_text(json.dumps(values))
    (source / "vocab.txt").unlink()
    (source / "G_100.pth").rename(source / "pretrained_ljs.pth")
    conversion = convert_vits(source / "pretrained_ljs.pth", language="eng")
    assert any("phonemes" in note for note in conversion.notes)
    tts = load(write(conversion, tmp_path / "converted"))
    phonemes = "həlˈoʊ wˈɜːld"
    assert tts.tokenizer.encode(phonemes, normalize=False).ids[1::2] == tuple(map(PHONEMES.index, phonemes))
    assert tts.tokenizer.encode("'", normalize=False).ids == (0, 176, 0)  # twice in VITS's list; the last one counts
    with pytest.raises(TextError, match="phonemes"):
        tts.synthesize("hello")
    back = vits_to_original(tmp_path / "converted")
    assert "vocab.txt" not in back.texts
    assert convert_vits(write(back, tmp_path / "back"), language="eng").texts == conversion.texts


@pytest.mark.parametrize("case", CASES)
def test_there_and_back_is_where_it_began(tmp_path: Path, case: str):
    back = vits_to_original(converted(tmp_path, case))
    values, state = read_all(back), {name: tensor.numpy() for name, tensor in state_of(case).items()}
    assert values.keys() == state.keys()
    for name, value in state.items():
        assert values[name].shape == value.shape
        if name.startswith(("dec.ups", "dec.resblocks")) and not name.endswith("bias"):
            kernel, ours = (_kernel(tensors, name) for tensors in (state, values))
            assert np.abs(kernel - ours).max() <= KERNEL_LIMIT * np.abs(kernel).max()
        else:
            assert np.array_equal(values[name], value), name
    assert back.texts["vocab.txt"] == "".join(f"{symbol}\n" for symbol in SYMBOLS)
    assert isinstance(back.texts["config.json"], dict)
    expected = original_config(voice(case).config)
    assert back.texts["config.json"]["model"].items() <= expected["model"].items()
    for key in ("sampling_rate", "filter_length", "hop_length", "add_blank", "n_speakers"):
        assert back.texts["config.json"]["data"][key] == expected["data"][key]


def _kernel(tensors: dict[str, np.ndarray], name: str) -> np.ndarray:
    stem = name.rpartition("_")[0]
    gain, direction = (tensors[f"{stem}_{end}"].astype(np.float64) for end in "gv")
    return gain * direction / np.sqrt((direction**2).sum((1, 2), keepdims=True))


def test_what_comes_back_converts_to_the_same_again(tmp_path: Path):
    first = convert_vits(original(tmp_path, uroman=True), language="eng")
    back = write(vits_to_original(write(first, tmp_path / "converted")), tmp_path / "back")
    again = convert_vits(back, language="eng")
    assert again.texts == first.texts
    values, expected = read_all(again), read_all(first)
    for name, value in expected.items():
        assert np.abs(values[name] - value).max() <= KERNEL_LIMIT * np.abs(value).max()


def test_what_comes_back_loads_as_training_does(tmp_path: Path):
    saved = torch.load(write(vits_to_original(converted(tmp_path)), tmp_path / "back") / "G_0.pth", weights_only=True)
    assert saved.keys() == {"model", "iteration", "optimizer", "learning_rate"}
    weights = [torch.nn.Parameter(tensor) for tensor in saved["model"].values()]
    optimizer = torch.optim.AdamW(weights, lr=1.0)
    optimizer.load_state_dict(saved["optimizer"])
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] == saved["learning_rate"]
    assert all(np.array_equal(saved["model"][name].shape, tensor.shape) for name, tensor in state_of().items())


def test_what_transformers_saves_now_goes_back_too(tmp_path: Path):
    directory = converted(tmp_path)
    expected = read_all(vits_to_original(directory))
    model = transformers.VitsModel.from_pretrained(directory)
    model.save_pretrained(directory)  # with the new spelling of weight norms
    actual = read_all(vits_to_original(directory))
    assert actual.keys() == expected.keys()
    assert all(np.array_equal(actual[name], expected[name]) for name in expected)


def test_filters_of_zeros_stay_zeros_on_the_way_back(tmp_path: Path):
    def silence(state: State) -> None:
        state["dec.ups.0.weight_g"] = state["dec.ups.0.weight_g"].clone()
        state["dec.ups.0.weight_g"][3] = 0

    directory = write(convert_vits(changed(tmp_path, silence), language="eng"), tmp_path / "converted")
    values = read_all(vits_to_original(directory))
    assert not _kernel(values, "dec.ups.0.weight_g")[3].any()
    assert np.isfinite(_kernel(values, "dec.ups.0.weight_g")).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"wavenet_dilation_rate": 2}, r"wavenet_dilation_rate is 2, but always 1"),
        ({"layer_norm_eps": 3e-2}, r"layer_norm_eps is 0\.03"),
        ({"resblock_dilation_sizes": [[1, 3], [1, 2]]}, r"resblock_dilation_sizes has \[1, 3\]"),
        ({"posterior_encoder_num_wavenet_layers": 2}, r"posterior_encoder_num_wavenet_layers is 2"),
    ],
)
def test_what_the_original_cannot_hold_is_named(tmp_path: Path, changes: dict[str, Any], message: str):
    directory = converted(tmp_path)
    values = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(values | changes))
    with pytest.raises(ConversionError, match=message):
        vits_to_original(directory)


def test_a_damaged_checkpoint_does_not_go_back(tmp_path: Path):
    directory = converted(tmp_path)
    tensors = load_file(directory / "model.safetensors")
    tensors["flow.flows.1.conv_pre.bias"][0] = np.nan
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"flow\.flows\.1\.conv_pre\.bias holds NaN"):
        read_all(vits_to_original(directory))


def test_the_public_loader_takes_what_is_written(tmp_path: Path):
    tts = mms_jax.load_tts(converted(tmp_path))
    assert (tts.language, tts.num_speakers, tts.sampling_rate) == ("eng", 1, 16000)
