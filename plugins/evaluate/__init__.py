"""Feature extractors of this project."""
