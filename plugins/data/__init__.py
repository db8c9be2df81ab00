"""Data sets of this project."""
