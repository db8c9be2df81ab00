"""Comparison of the scores of several trainings."""
