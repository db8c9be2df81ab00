"""Scores of images against real ones, with the protocol that they depend on."""
