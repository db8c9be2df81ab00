"""The commands of `diffctl`: options, help and light checks."""
