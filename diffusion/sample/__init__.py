"""Sampling: samplers, guidance, images by index, and the cells of a sweep."""
