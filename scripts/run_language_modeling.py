"""Prune a causal language model and recover it on plain text, or on text that the dense model writes itself.

Text is txt files (each one text), a column of csv, json or parquet files, a data set of the Hub, or state_of_the_union;
it is packed into windows of --max_length tokens, of which calibration, training and evaluation take theirs. The small
model learns what the dense one predicts for every next token (logits distillation):

    python scripts/run_language_modeling.py --model_name_or_path smollm2-135m --dataset state_of_the_union \
        --sparsity 0.2 --budget params --scorer kl_fisher --calibration_samples 64 --max_steps 200 \
        --learning_rate 3e-4 --task_weight 0 --temperature 1 --hidden_states_weight 0 --output_dir runs/smollm2

Further down the same road:

    --teacher_top_k 64              the dense model runs once over the text and its 64 likeliest tokens are kept
    --lora_rank 16                  adapters learn, and are merged at the end
    --bf16 --activation_checkpointing true      less memory, and more speed where the hardware has it
    --self_generated 512            in place of --dataset: the dense model writes 512 windows to learn from
    --self_generated 512 --test_file my.txt     the same, measured on a text of yours

For several processes put `accelerate launch --config_file scripts/accelerate_configs/...` in front. Perplexity is over
all tokens but the first of each window, before pruning, after it and recovered. Everything else is as in
run_text_classification.py.
"""

from hfprune.jobs.script import main

if __name__ == "__main__":
    main("causal_language_modelling", __doc__, script=__file__)
