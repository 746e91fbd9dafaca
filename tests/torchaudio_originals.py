"""torchaudio's wav2vec2 with a CTC head, which is not installable beside this torch: its parameters and what it does.

Written from its published definition (models/wav2vec2/components.py and model.py, ``wav2vec2_model`` with
``extractor_mode="layer_norm"``, ``extractor_conv_bias=True`` and ``encoder_layer_norm_first=True``).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

# dictionary.txt of ctc_alignment_mling_uroman.
DICTIONARY = ["<blank>", "<pad>", "</s>", "<unk>", *"aienoutsrmkldghybpwcvjzf'qx"]
OUTPUTS = len(DICTIONARY)
CONVS = [(10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2)]  # kernel and stride


class Conv(nn.Module):
    """A convolution over the waveform, a norm over its channels, an activation."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int):
        super().__init__()
        self.layer_norm = nn.LayerNorm(outputs)
        self.conv = nn.Conv1d(inputs, outputs, kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        return gelu(self.layer_norm(self.conv(x).mT).mT)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            self.add_module(name, nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, width: int, inner: int):
        super().__init__()
        self.intermediate_dense = nn.Linear(width, inner)
        self.output_dense = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.output_dense(gelu(self.intermediate_dense(x)))


class Layer(nn.Module):
    """Norms first."""

    def __init__(self, width: int, heads: int, inner: int):
        super().__init__()
        self.attention = Attention(width, heads)
        self.layer_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, inner)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.layer_norm(x))
        return x + self.feed_forward(self.final_layer_norm(x))


class PositionConv(nn.Module):
    """An even kernel gives a frame too many, the last."""

    def __init__(self, width: int, kernel: int, groups: int):
        super().__init__()
        conv = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=groups)
        self.conv = nn.utils.parametrizations.weight_norm(conv, name="weight", dim=2)

    def forward(self, x: Tensor) -> Tensor:
        return gelu(self.conv(x.mT)[..., : x.shape[1]]).mT


class Transformer(nn.Module):
    def __init__(self, width: int, heads: int, inner: int, layers: int, kernel: int, groups: int):
        super().__init__()
        self.pos_conv_embed = PositionConv(width, kernel, groups)
        self.layer_norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(Layer(width, heads, inner) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.pos_conv_embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.layer_norm(x)


class Wav2Vec2Model(nn.Module):
    """[B, S] samples to [B, T, V] logits."""

    def __init__(self, *, channels=12, width=24, heads=3, inner=37, layers=2, kernel=8, groups=4, outputs=OUTPUTS):
        super().__init__()
        convs = [Conv(channels if i else 1, channels, *conv) for i, conv in enumerate(CONVS)]
        self.feature_extractor = nn.ModuleDict({"conv_layers": nn.ModuleList(convs)})
        projection = {"layer_norm": nn.LayerNorm(channels), "projection": nn.Linear(channels, width)}
        transformer = Transformer(width, heads, inner, layers, kernel, groups)
        self.encoder = nn.ModuleDict({"feature_projection": nn.ModuleDict(projection), "transformer": transformer})
        self.aux = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None]
        for conv in self.feature_extractor["conv_layers"]:
            x = conv(x)
        projection = self.encoder["feature_projection"]
        x = projection["projection"](projection["layer_norm"](x.mT))
        return self.aux(self.encoder["transformer"](x))


def random_model(*, seed: int = 0, **sizes: int) -> Wav2Vec2Model:
    """A model of which every element of every parameter was drawn, at a scale that keeps the signal."""
    torch.manual_seed(seed)
    model = Wav2Vec2Model(**sizes).eval()
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.7, 1.3)
            elif parameter.ndim == 1:
                parameter.uniform_(-0.3, 0.3)
            elif name.endswith("original0"):
                parameter.mul_(torch.empty_like(parameter).uniform_(0.7, 1.3))
            else:
                parameter.mul_(1.5)
    with torch.no_grad():  # else one token is the likeliest of all frames
        logits = model(torch.randn(1, 16_000))
        model.aux.bias -= logits.mean((0, 1))
    return model


def state_dict(model: Wav2Vec2Model, *, old_spelling: bool) -> dict[str, Tensor]:
    """What is published: with torch's spelling of weight norms from before 2.0, which that file has, or the later."""
    spelling = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    state = dict(model.state_dict())
    for new, old in spelling.items() if old_spelling else ():
        state = {name.replace(new, old): tensor for name, tensor in state.items()}
    return state
