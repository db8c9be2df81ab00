"""Training: the loop, its state, gradients, their average, several processes."""
