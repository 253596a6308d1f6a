"""Vocabulary pruning: which tokens a corpus needs, the smaller tokenizer, and the model that knows only those."""

from hfprune.vocabulary.pruning import prune_vocabulary

__all__ = ["prune_vocabulary"]
