"""The stages of dvc.yaml, and the observers of a training."""
