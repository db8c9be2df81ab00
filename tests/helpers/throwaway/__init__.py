"""Plugins that docs/extending.md does not show, and tests of all plugins, for tests/test_extending.py."""
