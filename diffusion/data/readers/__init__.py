"""Readers of untrusted files into rows of images: arrays, archives, folders, image files."""
