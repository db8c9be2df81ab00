"""Processes that train together: launch, process group, sharding, gradient sums and rank 0."""
