"""The model registry: versions, the champion and its log."""
