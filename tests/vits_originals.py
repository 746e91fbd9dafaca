"""VITS checkpoints as the original code writes them, made of random transformers models.

The original's names are spelled out here beside the modules they stand for, apart from convert's table and the other
way round, so that a wrong name in either shows. None of the weights keeps its initial value, and a weight norm's
directions have lengths of their own, as training leaves them.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from convert.conversion import Conversion
from convert.torch_writer import write_torch_file
from mms_jax.checkpoint.tensors import TensorSource, write_tensors
from tests.vits_parity import DETERMINISTIC, SPEAKERS, calibrate_durations, random_text, random_vits, small_vits

State = dict[str, torch.Tensor]

# Symbol 0 is a letter. Of what is white space, only the end of a line ends a line.
SYMBOLS = (*"k aehilnorstuw'–", "\u00a0", "\u2028", "\x0b", "\x85")
SENTENCE = "the wear's on a rhino's ankles"

# What the original has no attribute for, in little only where it is one of sizes.
FIXED: dict[str, Any] = {
    "depth_separable_num_layers": 3,
    "duration_predictor_num_flows": 4,
    "duration_predictor_filter_channels": 256,
    "prior_encoder_num_flows": 4,
    "prior_encoder_num_wavenet_layers": 4,
    "posterior_encoder_num_wavenet_layers": 16,
    "resblock_dilation_sizes": [[1, 3, 5], [2, 4, 1]],
    "num_hidden_layers": 2,
    "layerdrop": 0.0,
}

CASES: dict[str, dict[str, Any]] = {
    "as in MMS": {},
    "several speakers": SPEAKERS,
    "several speakers, deterministic": SPEAKERS | DETERMINISTIC,
    "other widths and blocks, and parts for speakers": {
        "speaker_embedding_size": 3,
        "hidden_size": 20,
        "num_hidden_layers": 3,
        "ffn_kernel_size": 4,
        "upsample_rates": [4],
        "upsample_kernel_sizes": [8],
        "resblock_kernel_sizes": [3, 5, 7],
        "resblock_dilation_sizes": [[1, 3, 5], [2, 4, 1], [1, 1, 7]],
    },
}
MMS, MANY = "as in MMS", "several speakers"


def random_voice(*, seed: int = 0, **changes: Any) -> transformers.VitsModel:
    """A small model of the original's architecture, that speaks at a usual pace."""
    model = random_vits(small_vits(**{"vocab_size": len(SYMBOLS), **FIXED, **changes}), seed=seed)
    text, noise = random_text(model.config, (30,), seed=seed)
    calibrate_durations(model, text, noise)
    return model


def original_config(config: Any, *, uroman: bool = False, **model: Any) -> dict[str, Any]:
    """config.json as it is trained with; ``model`` changes that part."""
    hop = 1
    for rate in config.upsample_rates:
        hop *= rate
    return {
        "train": {"learning_rate": 2e-4, "segment_size": 8192, "c_mel": 45},
        "data": {
            "training_files": "train.uroman" if uroman else "train.ltr",
            "validation_files": "dev.ltr",
            "text_cleaners": ["transliteration_cleaners"],
            "max_wav_value": 32768.0,
            "sampling_rate": 16000,
            "filter_length": 2 * (config.spectrogram_bins - 1),
            "hop_length": hop,
            "win_length": 1024,
            "mel_fmax": None,
            "add_blank": True,
            "n_speakers": config.num_speakers if config.num_speakers > 1 else 0,
        },
        "model": {
            "inter_channels": config.flow_size,
            "hidden_channels": config.hidden_size,
            "filter_channels": config.ffn_dim,
            "n_heads": config.num_attention_heads,
            "n_layers": config.num_hidden_layers,
            "kernel_size": config.ffn_kernel_size,
            "p_dropout": 0.1,
            "resblock": "1",
            "resblock_kernel_sizes": list(config.resblock_kernel_sizes),
            "resblock_dilation_sizes": [list(sizes) for sizes in config.resblock_dilation_sizes],
            "upsample_rates": list(config.upsample_rates),
            "upsample_initial_channel": config.upsample_initial_channel,
            "upsample_kernel_sizes": list(config.upsample_kernel_sizes),
            "n_layers_q": 3,
            "use_spectral_norm": False,
            "gin_channels": config.speaker_embedding_size,
            "use_sdp": config.use_stochastic_duration_prediction,
            **model,
        },
    }


def original_state(model: transformers.VitsModel, *, seed: int = 0) -> State:
    """The state dict of the original's generator that computes what ``model`` does."""
    return _Writer(model, seed).state


class _Writer:
    def __init__(self, model: Any, seed: int):
        self.state: State = {}
        self.random = torch.Generator().manual_seed(seed)
        self.text(model.text_encoder)
        if model.config.use_stochastic_duration_prediction:
            self.stochastic(model.duration_predictor)
        else:
            self.deterministic(model.duration_predictor)
        for i, flow in enumerate(model.flow.flows):
            self.affine(f"flow.flows.{2 * i}.pre", flow.conv_pre)
            self.wavenet(f"flow.flows.{2 * i}.enc", flow.wavenet)
            self.affine(f"flow.flows.{2 * i}.post", flow.conv_post)
        self.affine("enc_q.pre", model.posterior_encoder.conv_pre)
        self.wavenet("enc_q.enc", model.posterior_encoder.wavenet)
        self.affine("enc_q.proj", model.posterior_encoder.conv_proj)
        self.decoder(model.decoder)
        if model.config.num_speakers > 1:
            self.put("emb_g.weight", model.embed_speaker.weight)

    def put(self, name: str, value: torch.Tensor) -> None:
        assert name not in self.state
        self.state[name] = value.detach().clone()

    def affine(self, name: str, module: Any, *, tap: bool = False) -> None:
        self.put(f"{name}.weight", module.weight[:, :, None] if tap else module.weight)
        if module.bias is not None:
            self.put(f"{name}.bias", module.bias)

    def norm(self, name: str, module: Any) -> None:
        self.put(f"{name}.gamma", module.weight)
        self.put(f"{name}.beta", module.bias)

    def normed(self, name: str, module: Any) -> None:
        """A convolution whose weight norm was taken off: one that gives the same kernel."""
        kernel = module.weight.detach().double()
        stretch = 0.5 + torch.rand(len(kernel), 1, 1, generator=self.random, dtype=torch.float64)
        self.put(f"{name}.weight_g", kernel.flatten(1).norm(dim=1)[:, None, None].float())
        self.put(f"{name}.weight_v", (kernel * stretch).float())
        self.put(f"{name}.bias", module.bias)

    def text(self, encoder: Any) -> None:
        self.put("enc_p.emb.weight", encoder.embed_tokens.weight)
        for i, layer in enumerate(encoder.encoder.layers):
            attention = f"enc_p.encoder.attn_layers.{i}"
            self.put(f"{attention}.emb_rel_k", layer.attention.emb_rel_k)
            self.put(f"{attention}.emb_rel_v", layer.attention.emb_rel_v)
            self.affine(f"{attention}.conv_q", layer.attention.q_proj, tap=True)
            self.affine(f"{attention}.conv_k", layer.attention.k_proj, tap=True)
            self.affine(f"{attention}.conv_v", layer.attention.v_proj, tap=True)
            self.affine(f"{attention}.conv_o", layer.attention.out_proj, tap=True)
            self.norm(f"enc_p.encoder.norm_layers_1.{i}", layer.layer_norm)
            self.affine(f"enc_p.encoder.ffn_layers.{i}.conv_1", layer.feed_forward.conv_1)
            self.affine(f"enc_p.encoder.ffn_layers.{i}.conv_2", layer.feed_forward.conv_2)
            self.norm(f"enc_p.encoder.norm_layers_2.{i}", layer.final_layer_norm)
        self.affine("enc_p.proj", encoder.project)

    def deterministic(self, predictor: Any) -> None:
        for name in ("conv_1", "conv_2", "proj", *(["cond"] if hasattr(predictor, "cond") else [])):
            self.affine(f"dp.{name}", getattr(predictor, name))
        self.norm("dp.norm_1", predictor.norm_1)
        self.norm("dp.norm_2", predictor.norm_2)

    def stochastic(self, predictor: Any) -> None:
        if hasattr(predictor, "cond"):
            self.affine("dp.cond", predictor.cond)
        self.affine("dp.pre", predictor.conv_pre)
        self.affine("dp.proj", predictor.conv_proj)
        self.dilated("dp.convs", predictor.conv_dds)
        self.affine("dp.post_pre", predictor.post_conv_pre)
        self.affine("dp.post_proj", predictor.post_conv_proj)
        self.dilated("dp.post_convs", predictor.post_conv_dds)
        for there, flows in (("dp.flows", predictor.flows), ("dp.post_flows", predictor.post_flows)):
            first, *others = flows
            self.put(f"{there}.0.m", first.translate)
            self.put(f"{there}.0.logs", first.log_scale)
            for flow, index in zip(others, range(1, 2 * len(others), 2), strict=True):
                self.affine(f"{there}.{index}.pre", flow.conv_pre)
                self.dilated(f"{there}.{index}.convs", flow.conv_dds)
                self.affine(f"{there}.{index}.proj", flow.conv_proj)

    def dilated(self, name: str, module: Any) -> None:
        for i, conv in enumerate(module.convs_dilated):
            self.affine(f"{name}.convs_sep.{i}", conv)
            self.affine(f"{name}.convs_1x1.{i}", module.convs_pointwise[i])
            self.norm(f"{name}.norms_1.{i}", module.norms_1[i])
            self.norm(f"{name}.norms_2.{i}", module.norms_2[i])

    def wavenet(self, name: str, module: Any) -> None:
        convs = {f"in_layers.{i}": conv for i, conv in enumerate(module.in_layers)}
        convs |= {f"res_skip_layers.{i}": conv for i, conv in enumerate(module.res_skip_layers)}
        if hasattr(module, "cond_layer"):
            convs["cond_layer"] = module.cond_layer
        for part, conv in convs.items():
            self.put(f"{name}.{part}.weight_g", conv.parametrizations.weight.original0)
            self.put(f"{name}.{part}.weight_v", conv.parametrizations.weight.original1)
            self.put(f"{name}.{part}.bias", conv.bias)

    def decoder(self, decoder: Any) -> None:
        self.affine("dec.conv_pre", decoder.conv_pre)
        self.affine("dec.conv_post", decoder.conv_post)
        if hasattr(decoder, "cond"):
            self.affine("dec.cond", decoder.cond)
        for i, conv in enumerate(decoder.upsampler):
            self.normed(f"dec.ups.{i}", conv)
        for i, block in enumerate(decoder.resblocks):
            for j, conv in enumerate(block.convs1):
                self.normed(f"dec.resblocks.{i}.convs1.{j}", conv)
            for j, conv in enumerate(block.convs2):
                self.normed(f"dec.resblocks.{i}.convs2.{j}", conv)


def discriminator_state(*, seed: int = 0) -> State:
    """Discriminators, whose size is always the same; each tensor is one random row, which the file holds once."""
    scale = [(1, 16, 15, 1), (16, 64, 41, 4), (64, 256, 41, 16), (256, 1024, 41, 64), (1024, 1024, 41, 256)]
    convs = {f"0.convs.{i}": (out, of // groups, width) for i, (of, out, width, groups) in enumerate(scale)}
    convs |= {"0.convs.5": (1024, 1024, 5), "0.conv_post": (1, 1024, 3)}
    for period in range(1, 6):
        channels = [1, 32, 128, 512, 1024, 1024]
        convs |= {f"{period}.convs.{i}": (channels[i + 1], channels[i], 5, 1) for i in range(5)}
        convs[f"{period}.conv_post"] = (1, 1024, 3, 1)
    random = torch.Generator().manual_seed(seed)
    state: State = {}
    for name, shape in convs.items():
        gain = (shape[0], *[1] * (len(shape) - 1))
        for end, size in (("weight_g", gain), ("weight_v", shape), ("bias", shape[:1])):
            row = torch.randn(size[1:], generator=random) + 2
            state[f"discriminators.{name}.{end}"] = row.expand(size)
    return state


def save_torch(path: Path, state: Mapping[str, Any], **others: Any) -> None:
    """Write a checkpoint as the original's training does."""
    optimizer = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 2e-4}]}
    values = {"model": dict(state), "iteration": 7, "optimizer": optimizer, "learning_rate": 2e-4, **others}
    torch.save(values, path)


def save_original(directory: Path, model: transformers.VitsModel, **config: Any) -> Path:
    """Write G_100.pth, config.json and vocab.txt."""
    directory.mkdir(parents=True, exist_ok=True)
    save_torch(directory / "G_100.pth", original_state(model))
    (directory / "config.json").write_text(json.dumps(original_config(model.config, **config)), encoding="utf-8")
    (directory / "vocab.txt").write_bytes("".join(f"{symbol}\n" for symbol in SYMBOLS).encode())
    return directory


def write(conversion: Conversion, directory: Path) -> Path:
    """Write what a converter yields."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, parts in conversion.tensors.items():
        sources = [TensorSource(part.target, part.dtype, part.shape, part.read) for part in parts]
        write_tensors(directory / name, sources)
    for name, value in conversion.objects.items():
        write_torch_file(directory / name, value)
    for name, text in conversion.texts.items():
        written = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
        (directory / name).write_bytes(written.encode())
    return directory


@functools.cache
def voice(case: str = MMS) -> Any:
    return random_voice(seed=len(case), **CASES[case])


@functools.cache
def state_of(case: str = MMS) -> State:
    return original_state(voice(case))


def original(directory: Path, case: str = MMS, **config: Any) -> Path:
    return save_original(directory / "original", voice(case), **config)


def changed(directory: Path, change: Callable[[State], Any], case: str = MMS) -> Path:
    """An original of which some tensors are otherwise."""
    source = original(directory, case)
    state = dict(state_of(case))
    change(state)
    save_torch(source / "G_100.pth", state)
    return source


def reconfigured(directory: Path, change: Callable[[dict], Any], case: str = MMS) -> Path:
    """An original of which config.json is otherwise."""
    source = original(directory, case)
    values = json.loads((source / "config.json").read_text())
    change(values)
    (source / "config.json").write_text(json.dumps(values))
    return source


def spelled(directory: Path, content: bytes) -> Path:
    """An original of which vocab.txt is otherwise."""
    source = original(directory)
    (source / "vocab.txt").write_bytes(content)
    return source


def lines(*symbols: str) -> bytes:
    return "".join(f"{symbol}\n" for symbol in symbols).encode()
