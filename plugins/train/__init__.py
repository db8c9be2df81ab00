"""Optimizers and learning-rate schedules of this project."""
