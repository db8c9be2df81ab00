"""Searches and verdicts: their commands."""
