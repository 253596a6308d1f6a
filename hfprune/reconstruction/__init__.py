"""Reconstruction: new weights in closed form, so that smaller layers follow the dense ones without any training."""
