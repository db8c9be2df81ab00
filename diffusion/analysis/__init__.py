"""What a trained model says of images: likelihood, encoding, interpolation."""
