"""Prune a model that classifies pictures, and recover its accuracy.

Data are folders with a sub-folder for each class, tables (csv, jsonl) with names of files, or data sets of the Hub with
a column of pictures. Labels that are floats make a regression.

    python scripts/run_image_classification.py --model_name_or_path google/vit-base-patch16-224-in21k \
        --dataset uoft-cs/cifar10 --image_column img --dense_epochs 3 --sparsity 0.5 --num_train_epochs 5 \
        --output_dir runs/cifar10

    python scripts/run_image_classification.py --model_name_or_path me/pictures --train_file pictures/train \
        --test_file pictures/test --random_flip true --sparsity 0.5 --output_dir runs/mine

Everything else is as in run_text_classification.py: one YAML file for all arguments, --resume_from_checkpoint,
--teacher_model, --early_stopping_patience, --push_to_hub. The folder `output_dir/model` holds the result.
"""

from hfprune.jobs.script import main

if __name__ == "__main__":
    main("image_classification", __doc__, script=__file__)
