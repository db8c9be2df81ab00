"""dvc.yaml's commands and what watches them."""
