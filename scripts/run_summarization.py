"""Prune a model that writes summaries, and recover its accuracy.

Data are files or data sets of the Hub with two columns: texts, and their summaries. Evaluation lets the model write and
compares by ROUGE.

    python scripts/run_summarization.py --model_name_or_path facebook/bart-large-xsum --dataset EdinburghNLP/xsum \
        --source_column document --max_target_length 64 --sparsity 0.3 --num_train_epochs 1 --output_dir runs/xsum

    python scripts/run_summarization.py --model_name_or_path me/summaries --train_file train.jsonl \
        --test_file test.jsonl --generation_num_beams 4 --sparsity 0.5 --output_dir runs/mine

Everything else is as in run_text_classification.py: one YAML file for all arguments, --resume_from_checkpoint,
--teacher_model, --early_stopping_patience, --push_to_hub. The folder `output_dir/model` holds the result.
"""

from hfprune.jobs.script import main

if __name__ == "__main__":
    main("summarization", __doc__, script=__file__)
