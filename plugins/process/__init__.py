"""Noise processes, predictions, time distributions, loss weights and objectives of this project."""
