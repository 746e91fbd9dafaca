"""Train adapters, or a whole model, with CTC: `mms-jax train` under the name that transformers' examples give it.

    python experiments/finetune_ctc.py --model_name_or_path facebook/mms-1b-all --target_language tur \\
        --dataset_name mozilla-foundation/common_voice_17_0 --dataset_config_name tr --text_column_name sentence \\
        --output_dir mms-tur --num_train_epochs 4 --per_device_train_batch_size 32 --learning_rate 1e-3 \\
        --warmup_steps 100 --group_by_length --bf16 --do_train --do_eval

`python -m experiments.finetune_ctc --help` lists all flags. What it comes to on bundled data: `make demo-train`.
"""

from __future__ import annotations

import sys

from mms_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
