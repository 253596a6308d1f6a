"""Giving accuracy back after pruning."""
