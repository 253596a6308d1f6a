"""Measures of a model: size, multiply-adds, latency, perplexity and the metrics of its predictions."""
