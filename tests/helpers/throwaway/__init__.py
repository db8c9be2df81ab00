"""Throwaway plugins that docs/extending.md does not have, and tests of all, for tests/test_extending.py."""
