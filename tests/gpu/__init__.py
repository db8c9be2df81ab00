"""What only a GPU executes: `make test-gpu` runs it, and without one it is skipped."""
