"""Sampling: the solvers, guidance, images by index, the cells of a sweep."""
