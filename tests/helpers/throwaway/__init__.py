"""Plugins that docs/extending.md does not show, and tests of its plugins, for tests/test_extending.py."""
