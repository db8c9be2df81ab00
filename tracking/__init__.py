"""MLflow: the spool and its sender, runs, and the model registry."""
