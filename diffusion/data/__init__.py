"""Data sets in (sources) and the one store for every set of images."""
