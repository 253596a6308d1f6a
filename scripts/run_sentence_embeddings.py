"""Prune a model of sentence embeddings and distil it from the dense one: from texts alone to a checkpoint with a card.

Scores, plans and cuts by the pooled and normalised embedding, trains the smaller model against the dense embeddings,
measures how near it stays to them, saves. Everything in one YAML or JSON file, or as arguments:

    python scripts/run_sentence_embeddings.py scripts/configs/sentence_embeddings.yaml --sparsity 0.3

    accelerate launch scripts/run_sentence_embeddings.py \
        --model_name_or_path sentence-transformers/all-MiniLM-L6-v2 --train_file texts.txt --sparsity 0.5 \
        --task_weight 0 --logits_weight 1 --hidden_states_weight 0 --output_dir runs/embeddings

The folder `output_dir/model` holds the result, a `SentenceTransformer`. Needs sentence-transformers.
"""

from hfprune.jobs.script import main

if __name__ == "__main__":
    main("sentence_embeddings", __doc__, script=__file__)
