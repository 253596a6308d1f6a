"""What a model is and costs: size, multiply-adds, latency, perplexity, metrics."""
