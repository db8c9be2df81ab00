"""Figures of how a model works: each file computes one's data, and says how it is drawn and written out."""
