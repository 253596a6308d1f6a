"""Prune a model that tags words, such as named entities, and recover its accuracy.

Data are files (json, jsonl, parquet) or data sets of the Hub with two columns of lists: words, and one tag for each.
Tags are strings or named numbers; with IOB tags (B-PER, I-PER, O) entities are measured, else the accuracy of tags.

    python scripts/run_token_classification.py --model_name_or_path google-bert/bert-base-cased \
        --dataset lhoestq/conll2003 --dense_epochs 3 --sparsity 0.5 --num_train_epochs 5 --output_dir runs/conll

    python scripts/run_token_classification.py --model_name_or_path me/tagger --train_file train.jsonl \
        --test_file test.jsonl --token_column words --tag_column tags --sparsity 0.6 --output_dir runs/mine

Everything else is as in run_text_classification.py: one YAML file for all arguments, --resume_from_checkpoint,
--teacher_model, --early_stopping_patience, --push_to_hub. The folder `output_dir/model` holds the result.
"""

from hfprune.jobs.script import main

if __name__ == "__main__":
    main("token_classification", __doc__, script=__file__)
