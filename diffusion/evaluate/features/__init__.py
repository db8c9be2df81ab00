"""Features of images: extractors, their weights, and the reference of real images."""
