"""Training goes where PyTorch's goes: the same model, clips and settings give the same losses and parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file
from transformers.trainer_pt_utils import get_parameter_names

from mms_jax.checkpoint import load_adapter
from mms_jax.models.trees import Params, flatten, split_adapter, stack_layers, unflatten
from mms_jax.training.state import stack_slots, take_slot
from mms_jax.training.step import Objective
from tests.parity import BASE, load, random_model, small_config
from tests.training_runs import (
    LEARNING_RATE,
    MMS,
    NO_DROPOUT,
    OPTIMIZER,
    PADDED,
    ROWS,
    WARMUP,
    Clips,
    random_clips,
    train,
)

# Adam divides a gradient by its own size: where one is nearly zero, rounding decides the sign of a whole step. 1.2e-5
# is seen in the losses (PyTorch's CTC loss in float32 is that exact), and 1.8e-6 in the parameters.
LOSS_PARITY = 1e-4
PARAMETER_PARITY = 1e-3


def torch_training(model: Any, clips: Clips, *, steps: int, passes: int = 1, mask: bool = True) -> list[float]:
    """A loop as transformers' Trainer has it: AdamW without decay of biases and norms, clip 1.0, linear schedule."""
    model.train()
    forbidden = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
    decayed = set(get_parameter_names(model, [torch.nn.LayerNorm], forbidden))
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in trained if name in decayed], "weight_decay": OPTIMIZER.weight_decay},
        {"params": [p for name, p in trained if name not in decayed], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE)
    scheduler = transformers.get_scheduler("linear", optimizer, num_warmup_steps=WARMUP, num_training_steps=steps)
    extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=mask)
    losses = []
    for step in range(steps):
        items = clips.items(step, ROWS * passes)
        total = 0.0
        for start in range(0, len(items), ROWS):
            part = items[start : start + ROWS]
            rows = [extractor(item.load(), sampling_rate=16_000).input_values[0] for item in part]
            inputs = extractor.pad({"input_values": rows}, padding="max_length", max_length=PADDED, return_tensors="pt")
            width = max(len(item.labels) for item in part)
            labels = [list(item.labels) + [-100] * (width - len(item.labels)) for item in part]
            loss = model(**inputs, labels=torch.tensor(labels)).loss / passes
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_([p for _, p in trained], OPTIMIZER.max_grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses


def is_indifferent(path: str) -> bool:
    """A key's bias shifts all scores of a query alike, which a softmax ignores: its gradient is rounding noise, and so
    is where Adam, which divides by the noise's own size, takes it.
    """
    return path.endswith("attention/k/bias")


def largest_errors(ours: Params, theirs: Params) -> dict[str, float]:
    """Of each leaf, relative to its largest element."""
    actual, expected = flatten(ours), flatten(theirs)
    assert actual.keys() == expected.keys()
    return {
        path: float(np.abs(np.asarray(actual[path]) - expected[path]).max() / np.abs(expected[path]).max())
        for path in expected
        if not is_indifferent(path)
    }


@pytest.mark.parametrize(("scan_layers", "passes"), [(False, 1), (True, 2)])
def test_fifty_steps_of_adapter_training_are_those_of_torch(scan_layers, passes, tmp_path):
    model = random_model(small_config(**MMS), seed=3)
    config, params = load(model, tmp_path, stack_layers=scan_layers)
    base, adapter = split_adapter(params)
    before = jax.tree.map(np.array, base)
    clips = random_clips(seed=3)
    model.freeze_base_model()
    for parameter in model._get_adapters().values():
        parameter.requires_grad = True
    expected = torch_training(model, clips, steps=50, passes=passes)

    stacked, columns = stack_slots([adapter if scan_layers else stack_layers(adapter)])
    objective = Objective(config, columns, adapters=True, scan_layers=scan_layers)
    losses, trained, _ = train(objective, base, stacked, [clips], steps=50, passes=passes)
    np.testing.assert_allclose(losses[:, 0], expected, rtol=LOSS_PARITY)
    assert losses[-1, 0] < 0.7 * losses[0, 0], "nothing was learnt, so nothing is compared"
    path = Path(tmp_path / "adapter.xyz.safetensors")
    save_file({name: leaf.detach().clone() for name, leaf in model._get_adapters().items()}, path)
    errors = largest_errors(take_slot(trained.params, 0), load_adapter(path, config, stack_layers=True))
    assert max(errors.values()) <= PARAMETER_PARITY, errors
    assert all((a == b).all() for a, b in zip(jax.tree.leaves(base), jax.tree.leaves(before), strict=True))


@pytest.mark.parametrize(
    ("changes", "reduction", "frozen"),
    [
        (MMS | {"adapter_attn_dim": None}, "mean", True),
        (NO_DROPOUT | BASE | {"ctc_loss_reduction": "sum"}, "sum", False),
    ],
)
def test_twenty_steps_of_full_fine_tuning_are_those_of_torch(changes, reduction, frozen, tmp_path):
    model = random_model(small_config(**changes), seed=4)
    config, params = load(model, tmp_path / "before")
    clips = random_clips(blank_id=config.pad_token_id, seed=4)
    if frozen:
        model.freeze_feature_encoder()
    has_mask = config.feat_extract_norm == "layer"
    expected = torch_training(model, clips, steps=20, mask=has_mask)

    flat = flatten(params)
    kept = {path: leaf for path, leaf in flat.items() if frozen and path.startswith("wav2vec2/feature_extractor/")}
    own = unflatten({path: leaf[None] for path, leaf in flat.items() if path not in kept})
    columns = np.ones((1, config.vocab_size), bool)
    objective = Objective(config, columns, adapters=False, has_mask=has_mask)
    losses, trained, _ = train(objective, unflatten(kept), own, [clips], steps=20, reduction=reduction)
    np.testing.assert_allclose(losses[:, 0], expected, rtol=LOSS_PARITY)
    after = load(model, tmp_path / "after").params
    theirs = unflatten({path: leaf for path, leaf in flatten(after).items() if path not in kept})
    errors = largest_errors(take_slot(trained.params, 0), theirs)
    assert max(errors.values()) <= PARAMETER_PARITY, errors
