"""Repair in closed form: the smaller layers follow the dense ones again, without any training."""
