"""Figures of how a model works. Each module computes the data of one figure and draws it."""
