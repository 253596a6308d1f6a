"""Prune a model that translates, and recover its accuracy.

Data are files or data sets of the Hub with two columns, texts and translations, or with a column `translation` that
holds a text in several languages. Evaluation lets the model write and compares by chrF and BLEU.

    python scripts/run_translation.py --model_name_or_path Helsinki-NLP/opus-mt-en-de --dataset wmt/wmt16 \
        --dataset_config de-en --source_language en --target_language de --sparsity 0.3 --num_train_epochs 1 \
        --output_dir runs/en-de

    python scripts/run_translation.py --model_name_or_path facebook/mbart-large-50-many-to-many-mmt \
        --train_file train.csv --source_language en_XX --target_language de_DE --sparsity 0.3 --output_dir runs/mine

Everything else is as in run_text_classification.py: one YAML file for all arguments, --resume_from_checkpoint,
--teacher_model, --early_stopping_patience, --push_to_hub. The folder `output_dir/model` holds the result.
"""

from hfprune.jobs.script import main

if __name__ == "__main__":
    main("translation", __doc__, script=__file__)
