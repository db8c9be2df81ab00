"""Extractors, features, scores and the protocol card."""
