"""What cannot be converted, or not as it is, says what is wrong and where: every message names its culprit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from convert.conversion import ConversionError
from convert.vits import convert_vits
from convert.vits_names import discriminator_entries
from convert.vits_weights import make_parts
from tests.vits_originals import (
    SYMBOLS,
    State,
    changed,
    discriminator_state,
    lines,
    original,
    reconfigured,
    save_torch,
    spelled,
    state_of,
)


def put(name: str, value: torch.Tensor) -> Callable[[State], None]:
    return lambda state: state.update({name: value})


def spoiled(name: str, value: float) -> Callable[[State], None]:
    def change(state: State) -> None:
        state[name] = state[name].clone()
        state[name].view(-1)[0] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("enc_q.proj.bias"), r"G_100\.pth: 1 tensor\(s\) missing: enc_q\.proj\.bias \[24\]"),
        (lambda state: state.pop("dec.ups.1.weight_g"), r"missing: dec\.ups\.1\.weight_g \[8, 1, 1\]"),
        (put("enc_p.extra", torch.ones(2)), r"1 tensor\(s\) unknown: enc_p\.extra \[2\]"),
        (put("dec.resblocks.0.convs.0.bias", torch.ones(2)), 'unknown: .*blocks of resblock "2"'),
        (put("emb_g.weight", torch.ones(3, 4)), r"unknown: emb_g\.weight.*n_speakers and gin_channels"),
        (put("dec.ups.0.weight", torch.ones(16, 8, 8)), r"unknown: dec\.ups\.0\.weight_g"),
        (put("dec.ups.0.parametrizations.weight.original0", torch.ones(16, 1, 1)), "which are the same tensor"),
        (put("enc_q.pre.weight", torch.ones(16, 8, 1)), r"enc_q\.pre\.weight has shape \[16, 8, 1\].*filter_length"),
        (put("enc_q.pre.bias", torch.ones(16, dtype=torch.int64)), r"enc_q\.pre\.bias has dtype int64"),
        (lambda state: [state.update({f"module.{key}": state.pop(key)}) for key in list(state)], "'module.'"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path: Path, change: Callable[[State], Any], message: str):
    with pytest.raises(ConversionError, match=message):
        convert_vits(changed(tmp_path, change), language=None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (spoiled("flow.flows.2.pre.weight", np.nan), r"G_100\.pth: flow\.flows\.2\.pre\.weight holds NaN"),
        (spoiled("dec.ups.0.weight_v", np.inf), r"dec\.ups\.0\.weight_v holds NaN or infinity"),
        (
            lambda state: state.update({"dec.ups.1.weight_v": 0 * state["dec.ups.1.weight_v"]}),
            r"dec\.ups\.1\.weight_g and dec\.ups\.1\.weight_v give decoder\.upsampler\.1\.weight values",
        ),
        (put("enc_q.pre.bias", torch.full((16,), 1e300, dtype=torch.float64)), r"enc_q\.pre\.bias give"),
    ],
)
def test_weights_that_are_not_finite_are_named_when_read(tmp_path: Path, change: Callable, message: str):
    conversion = convert_vits(changed(tmp_path, change), language=None)
    with pytest.raises(ConversionError, match=message):
        [part.read() for part in conversion.tensors["model.safetensors"]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["model"].update(resblock="2"), r"config\.json: 'resblock' under 'model' is '2'"),
        (lambda v: v["model"].update(resblock=1), "'resblock' under 'model' is 1"),
        (lambda v: v["model"].update(use_transformer_flows=True), "unknown under 'model': 'use_transformer_flows'"),
        (lambda v: v["model"].pop("n_heads"), "'n_heads' under 'model' is missing"),
        (lambda v: v["model"].update(n_heads="2"), r"num_attention_heads is '2'.*is 'n_heads' there"),
        (lambda v: v["model"].update(n_layers=3), r"missing: .*attn_layers\.2.*n_layers"),
        (lambda v: v["model"].update(n_layers=10**9), "no model has more than .*is 'n_layers' there"),
        (lambda v: v["model"].update(filter_channels=25), r"ffn_layers\.0\.conv_1\.weight has shape.*filter_channels"),
        (lambda v: v["model"].update(use_sdp=False), r"missing: dp\.conv_1.*use_sdp"),
        (lambda v: v["model"].update(gin_channels=8), r"missing: .*cond.*gin_channels"),
        (lambda v: v["model"].update(resblock_dilation_sizes=[[1, 3], [1, 3]]), r"has \[1, 3\]; VITS's blocks have 3"),
        (lambda v: v["data"].update(hop_length=256), r"'hop_length' is 256, but 'upsample_rates' \[4, 2\] make 8"),
        (lambda v: v["data"].pop("training_files"), "'training_files' under 'data' is missing"),
        (lambda v: v["data"].update(add_blank="yes"), "'add_blank' under 'data' is 'yes'; it must be a bool"),
        (lambda v: v["data"].update(sampling_rate=True), "'sampling_rate' under 'data' is True"),
        (lambda v: v.pop("data"), "no object under 'data'"),
        (lambda v: v.update(model_type="vits"), "is of the Hugging Face layout already"),
    ],
)
def test_settings_that_do_not_fit_are_named(tmp_path: Path, change: Callable[[dict], Any], message: str):
    with pytest.raises(ConversionError, match=message):
        convert_vits(reconfigured(tmp_path, change), language=None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lines(*SYMBOLS[:-1]), r"vocab\.txt: 19 symbol\(s\), but G_100\.pth has embeddings of 20"),
        (lines(*SYMBOLS, ""), r"21 symbol\(s\), the last of them empty, but"),
        (lines(*(symbol.strip(" ") for symbol in SYMBOLS)), "line 2 is empty, and none is a space"),
        (b"\xef\xbb\xbf" + lines(*SYMBOLS), "byte order mark"),
        (b"\xff\xfe" + lines(*SYMBOLS), "not UTF-8"),
        (lines("k" * 300, *SYMBOLS[1:]), "is no token"),
        (b"\n" * (2 << 20), "bytes; such a file has at most"),
        (b"", r"0 symbol\(s\)"),
    ],
)
def test_symbols_that_do_not_fit_are_named(tmp_path: Path, content: bytes, message: str):
    with pytest.raises(ConversionError, match=message):
        convert_vits(spelled(tmp_path, content), language=None)


def test_files_that_are_missing_are_named(tmp_path: Path):
    for name, message in (("vocab.txt", r"vocab\.txt: missing"), ("config.json", r"config\.json: cannot be read")):
        source = original(tmp_path)
        (source / name).unlink()
        with pytest.raises(ConversionError, match=message):
            convert_vits(source, language=None)
    source = original(tmp_path)
    (source / "G_100.pth").rename(source / "generator.pth")
    with pytest.raises(ConversionError, match=r"no G_<step>\.pth there \(\.pth files: generator\.pth\)"):
        convert_vits(source, language=None)


def test_a_checkpoint_without_a_model_is_named(tmp_path: Path):
    source = original(tmp_path)
    torch.save({"state_dict": state_of()}, source / "G_100.pth")
    with pytest.raises(ConversionError, match=r"no tensors under 'model'.*found: 'state_dict'"):
        convert_vits(source, language=None)
    torch.save({"model": {"enc_p.emb.weight": 3}}, source / "G_100.pth")
    with pytest.raises(ConversionError, match=r"'enc_p\.emb\.weight' under 'model' is a int, not a tensor"):
        convert_vits(source, language=None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: state.pop("discriminators.5.convs.0.bias"),
            r"D_100\.pth: .*missing: discriminators\.5\.convs",
        ),
        (put("discriminators.6.conv_post.bias", torch.ones(1)), r"unknown: discriminators\.6\.conv_post\.bias"),
        (put("discriminators.0.convs.0.weight_orig", torch.ones(1)), "spectral norm"),
        (put("discriminators.0.convs.0.bias", torch.ones(8)), r"discriminators\.0\.convs\.0\.bias has shape \[8\]"),
    ],
)
def test_discriminators_that_do_not_fit_are_named(change: Callable[[State], Any], message: str):
    state = discriminator_state()
    change(state)
    tensors = {name: Held(tensor) for name, tensor in state.items()}
    with pytest.raises(ConversionError, match=message):
        make_parts(discriminator_entries(), tensors, file=Path("D_100.pth"), forward=True)


def test_discriminators_of_another_step_are_not_taken_for_these(tmp_path: Path):
    source = original(tmp_path)
    save_torch(source / "D_50.pth", {})
    with pytest.raises(ConversionError, match=r"D_100\.pth: missing, but those of other steps are there \(D_50\.pth\)"):
        convert_vits(source, language=None)


class Held(NamedTuple):
    """A tensor as the converter sees it, without the 190 MB file that discriminators make."""

    tensor: torch.Tensor

    @property
    def dtype(self) -> np.dtype:
        return self.tensor.numpy().dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    def read(self) -> np.ndarray:
        return self.tensor.contiguous().numpy()
