"""Sharing a pruned model: checkpoints, records and cards."""
