"""Trials of a search or a verdict: a training with changed settings, its samples and its scores."""
