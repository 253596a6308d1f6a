"""Prune a chat model, and recover it from conversations.

Data are files (jsonl, parquet) or data sets of the Hub with a column of messages: in every row a list of role and
content. They are written out by the chat template of the model. Only what the assistant says is learned and measured.

    python scripts/run_chat.py --model_name_or_path HuggingFaceTB/SmolLM2-135M-Instruct \
        --dataset HuggingFaceTB/smoltalk --dataset_config everyday-conversations --sparsity 0.3 --scorer kl_fisher \
        --num_train_epochs 1 --output_dir runs/chat

    python scripts/run_chat.py --model_name_or_path me/assistant --train_file train.jsonl --test_file test.jsonl \
        --max_length 512 --sparsity 0.3 --num_train_epochs 1 --output_dir runs/mine

Everything else is as in run_text_classification.py: one YAML file for all arguments, --resume_from_checkpoint,
--teacher_model, --early_stopping_patience, --push_to_hub. The folder `output_dir/model` holds the result.
"""

from hfprune.jobs.script import main

if __name__ == "__main__":
    main("chat", __doc__, script=__file__)
