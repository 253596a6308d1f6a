"""Prune a model that classifies sounds, and recover its accuracy.

Data are folders with a sub-folder for each class, tables (csv, jsonl) with names of files, or data sets of the Hub with
a column of sounds. Labels that are floats make a regression.

    python scripts/run_audio_classification.py --model_name_or_path facebook/wav2vec2-base \
        --dataset google/speech_commands --dataset_config v0.02 --max_seconds 1 --dense_epochs 5 --sparsity 0.5 \
        --num_train_epochs 5 --output_dir runs/commands

    python scripts/run_audio_classification.py --model_name_or_path me/sounds --train_file sounds/train \
        --test_file sounds/test --sparsity 0.5 --output_dir runs/mine

Everything else is as in run_text_classification.py: one YAML file for all arguments, --resume_from_checkpoint,
--teacher_model, --early_stopping_patience, --push_to_hub. The folder `output_dir/model` holds the result.
"""

from hfprune.jobs.script import main

if __name__ == "__main__":
    main("audio_classification", __doc__, script=__file__)
