"""Rows of images into the stores that readers see."""
