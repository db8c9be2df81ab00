"""Actions on images: `sample`, `edit`, `encode`, `interpolate`, `nll`, `grid`, `show`."""
