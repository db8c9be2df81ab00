"""Images: the one store for every image set, uint8 ↔ [−1, 1], decoding, grids and pictures."""
