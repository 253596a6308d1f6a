"""Prune a masked language model and recover it on plain text, for no task in particular.

The smaller model learns what the dense one predicts for masked tokens; the result is then fine-tuned like any other.
Text is lines of txt files, a column of csv, json or parquet files, or a data set of the Hub:

    python scripts/run_mlm.py --model_name_or_path google-bert/bert-base-uncased --train_file text.txt \
        --sparsity 0.5 --num_train_epochs 3 --learning_rate 1e-4 --output_dir runs/mlm

    python scripts/run_mlm.py --model_name_or_path google-bert/bert-base-uncased --dataset Salesforce/wikitext \
        --dataset_config wikitext-103-raw-v1 --max_length 256 --sparsity 0.5 --output_dir runs/mlm

    python scripts/run_text_classification.py --model_name_or_path runs/mlm/model --dense_epochs 3 --sparsity 0 \
        --num_train_epochs 0 --dataset nyu-mll/glue --dataset_config sst2 --text_column sentence --output_dir runs/sst2

The last one fine-tunes the pruned model and removes nothing more. Loss and perplexity are of masked tokens only, in
nats, on masks that are the same for every model. Everything else is as in run_text_classification.py.
"""

from hfprune.jobs.script import main

if __name__ == "__main__":
    main("masked_language_modelling", __doc__, script=__file__)
