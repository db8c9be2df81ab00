"""A training's log on disk, and its delivery to MLflow."""
