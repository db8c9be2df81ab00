"""Tests of code that only a GPU executes: `make test-gpu` runs them, without a GPU they are skipped."""
