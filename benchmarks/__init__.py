"""What the project promises in seconds and images a second, measured. Run with nothing else running."""
