"""Analysis of images by a trained model: likelihood, encoding, interpolation."""
