"""A run that is evaluated: what it asks, what answers, and how it goes on from shard to shard."""
