"""Scores from features, and how sure they are."""
