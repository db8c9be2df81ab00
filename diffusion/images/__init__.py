"""The ground: the one store of every set of images, uint8 ↔ [−1, 1], pictures."""
