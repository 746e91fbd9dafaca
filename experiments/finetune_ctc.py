"""Fine-tuning with CTC: adapters of MMS models, or whole encoders. ``mms-jax train`` under another name.

Flags are those of transformers' run_speech_recognition_ctc.py and run_speech_recognition_ctc_adapter.py: commands that
were written for these run with this file's name in place of theirs. An adapter of MMS for Turkish:

    python experiments/finetune_ctc.py --model_name_or_path facebook/mms-1b-all --target_language tur \\
        --dataset_name mozilla-foundation/common_voice_17_0 --dataset_config_name tr --text_column_name sentence \\
        --output_dir mms-turkish --num_train_epochs 4 --per_device_train_batch_size 32 --learning_rate 1e-3 \\
        --warmup_steps 100 --eval_strategy steps --eval_steps 100 --save_steps 200 --save_total_limit 3 \\
        --gradient_checkpointing --bf16 --group_by_length --chars_to_ignore , ? . ! - ";" ":" % --do_train --do_eval

Swedish beside it, in the same directory: the same command with ``--target_language swe --dataset_config_name sv-SE``.
Both at once, as one job: ``--target_language tur swe --dataset_config_name tr sv-SE``. A whole model, from data that is
read as it comes:

    python experiments/finetune_ctc.py --model_name_or_path facebook/wav2vec2-xls-r-300m \\
        --tokenizer_name_or_path ./turkish-tokenizer --dataset_name mozilla-foundation/common_voice_17_0 \\
        --dataset_config_name tr --train_split_name train+validation --eval_split_name test \\
        --text_column_name sentence --streaming --shuffle_buffer_size 500 --max_steps 5000 --output_dir xls-r-turkish \\
        --per_device_train_batch_size 8 --gradient_accumulation_steps 4 --learning_rate 3e-4 --warmup_steps 500 \\
        --layerdrop 0.0 --bf16 --do_train --do_eval

Results, offline and in minutes: experiments/finetune_parity.py. ``--help`` lists all flags.
"""

import sys

from mms_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
