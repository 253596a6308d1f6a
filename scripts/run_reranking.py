"""Prune a reranker and distil it from the dense one: from pairs of texts alone to a checkpoint with a card.

Scores, plans and cuts by the scores of pairs, trains the smaller model against the dense scores, measures how alike
both order the pairs, saves. Everything in one YAML or JSON file, or as arguments:

    accelerate launch scripts/run_reranking.py \
        --model_name_or_path cross-encoder/ms-marco-MiniLM-L6-v2 --train_file pairs.csv --sparsity 0.5 \
        --task_weight 0 --logits_weight 1 --hidden_states_weight 0 --output_dir runs/reranker

The folder `output_dir/model` holds the result, a `CrossEncoder`. Needs sentence-transformers.
"""

from hfprune.jobs.script import main

if __name__ == "__main__":
    main("reranking", __doc__, script=__file__)
