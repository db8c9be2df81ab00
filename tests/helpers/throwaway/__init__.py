"""Tests of the plugins in docs/extending.md, for tests/test_extending.py."""
