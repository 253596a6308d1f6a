"""Prune a text classifier and recover its accuracy: from a pretrained encoder to a checkpoint with its card.

Fine-tunes the dense model if asked, scores, plans and cuts, trains the smaller model against the dense one, measures
both, saves. Everything in one YAML or JSON file, or as arguments:

    python scripts/run_text_classification.py scripts/configs/demo.yaml --sparsity 0.6   # the file, and a change

    accelerate launch scripts/run_text_classification.py \
        --model_name_or_path google-bert/bert-base-uncased --dataset nyu-mll/glue --dataset_config sst2 \
        --text_column sentence --dense_epochs 3 --sparsity 0.5 --output_dir runs/bert-sst2

Pairs of texts have a --pair_column; labels that are floats make a regression:

    python scripts/run_text_classification.py --model_name_or_path me/finetuned --train_file train.csv \
        --test_file test.csv --text_column first --pair_column second --label_column score --sparsity 0.6 \
        --num_train_epochs 10 --eval_strategy steps --eval_steps 200 --save_strategy steps --save_steps 200 \
        --load_best_model_at_end --metric_for_best_model pearson --early_stopping_patience 3 \
        --report_to tensorboard --output_dir runs/mine

The folder `output_dir/model` holds the result; a run that was cut goes on with --resume_from_checkpoint CHECKPOINT (or
`true` for the last one). --teacher_model names another teacher than the dense model, --push_to_hub uploads the result.
"""

from hfprune.jobs.script import main

if __name__ == "__main__":
    main("text_classification", __doc__, script=__file__)
