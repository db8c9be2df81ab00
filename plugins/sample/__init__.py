"""Samplers, spacings and guidance rules of this project."""
