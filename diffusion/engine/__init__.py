"""The engine: samples many requests at once and batches their calls of the network."""
