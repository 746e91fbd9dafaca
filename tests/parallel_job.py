"""A small training job that tests/test_parallel.py runs in processes of their own; prints what it came to as JSON.

    python -m tests.parallel_job DEVICES [COORDINATOR PROCESSES PROCESS]

It trains adapters of two languages on a mesh of DEVICES, eight rows of each language at a step whatever their number.
"""

from __future__ import annotations

import json
import sys

import jax
import numpy as np

from mms_jax.config import Wav2Vec2Config
from mms_jax.models import Wav2Vec2ForCTC
from mms_jax.models.trees import split_adapter
from mms_jax.parallel import initialize, make_mesh
from mms_jax.training.state import fresh_adapter, stack_slots, take_slot
from mms_jax.training.step import Objective
from tests.training_runs import random_clips, train

ROWS, STEPS = 8, 6
CONFIG = Wav2Vec2Config(
    vocab_size=23,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=37,
    conv_dim=(9, 11, 7),
    conv_kernel=(7, 2, 1),
    conv_stride=(3, 2, 2),
    conv_bias=True,
    feat_extract_norm="layer",
    do_stable_layer_norm=True,
    num_conv_pos_embeddings=8,
    num_conv_pos_embedding_groups=4,
    adapter_attn_dim=5,
    pad_token_id=7,
    hidden_dropout=0.0,
    activation_dropout=0.0,
    attention_dropout=0.0,
    final_dropout=0.0,
    layerdrop=0.3,
    mask_time_prob=0.2,
    mask_time_length=3,
    mask_feature_prob=0.2,
    mask_feature_length=3,
)


def main() -> None:
    """Train and print losses of every step and the sums of what was trained."""
    num_devices = int(sys.argv[1])
    if len(sys.argv) > 2:
        initialize(coordinator_address=sys.argv[2], num_processes=int(sys.argv[3]), process_id=int(sys.argv[4]))
    params = Wav2Vec2ForCTC(CONFIG).init(jax.random.key(0), np.zeros((1, 400), np.float32))["params"]
    base = jax.tree.map(np.asarray, split_adapter(params)[0])
    adapters, columns = stack_slots([fresh_adapter(CONFIG, vocab_size=size, seed=2) for size in (23, 15)])
    clips = [random_clips(count=9, seed=0), random_clips(count=7, vocab_size=15, seed=1)]
    objective = Objective(CONFIG, columns, adapters=True)
    mesh = make_mesh(num_devices=num_devices)
    run = train(objective, base, adapters, clips, steps=STEPS, mesh=mesh, rows=ROWS // num_devices, augment=True)
    leaves = jax.tree.leaves(take_slot(jax.tree.map(lambda leaf: leaf.addressable_data(0), run.state.params), 1))
    trained = [float(np.abs(leaf).sum()) for leaf in leaves] + [float(leaf.sum()) for leaf in leaves]
    if jax.process_index() == 0:
        print(json.dumps({"losses": run.losses.tolist(), "trained": trained, "devices": mesh.size}))


if __name__ == "__main__":
    main()
