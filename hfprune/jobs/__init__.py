"""Whole jobs, as the scripts do them: fine-tune, prune, recover, measure, save, publish."""
