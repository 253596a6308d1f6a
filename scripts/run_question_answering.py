"""Prune a model that answers questions out of a text, and recover its accuracy.

Data are files of SQuAD (json, also those of SQuAD 2.0, whose questions may have no answer), rows with the columns
question, context and answers (json, jsonl, parquet), or data sets of the Hub. Long contexts are read in windows.

    python scripts/run_question_answering.py --model_name_or_path google-bert/bert-base-uncased \
        --dataset rajpurkar/squad --dense_epochs 2 --sparsity 0.5 --num_train_epochs 3 --output_dir runs/squad

    python scripts/run_question_answering.py --model_name_or_path me/answers --train_file train-v2.0.json \
        --test_file dev-v2.0.json --max_length 256 --doc_stride 64 --sparsity 0.6 --output_dir runs/mine

Everything else is as in run_text_classification.py: one YAML file for all arguments, --resume_from_checkpoint,
--teacher_model, --early_stopping_patience, --push_to_hub. The folder `output_dir/model` holds the result.
"""

from hfprune.jobs.script import main

if __name__ == "__main__":
    main("question_answering", __doc__, script=__file__)
