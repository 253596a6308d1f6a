"""Prune a model that chooses one of several answers, and recover its accuracy.

Data are files (json, jsonl, csv, parquet) or data sets of the Hub: a question, its choices (one column with a list, or
several columns), and which of them is right. A column with a text that the question is about may come with it.

    python scripts/run_multiple_choice.py --model_name_or_path google-bert/bert-base-uncased \
        --dataset allenai/swag --dataset_config regular --context_column sent1 --question_column sent2 \
        --choice_columns ending0 ending1 ending2 ending3 --dense_epochs 2 --sparsity 0.5 --output_dir runs/swag

    python scripts/run_multiple_choice.py --model_name_or_path me/chooser --train_file train.jsonl \
        --test_file test.jsonl --sparsity 0.6 --output_dir runs/mine

Everything else is as in run_text_classification.py: one YAML file for all arguments, --resume_from_checkpoint,
--teacher_model, --early_stopping_patience, --push_to_hub. The folder `output_dir/model` holds the result.
"""

from hfprune.jobs.script import main

if __name__ == "__main__":
    main("multiple_choice", __doc__, script=__file__)
