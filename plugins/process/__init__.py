"""Noise processes, predictions, time distributions and loss weights of this project."""
