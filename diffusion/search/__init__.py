"""Hyperparameter search: the space, Optuna's study, and the table of settings."""
