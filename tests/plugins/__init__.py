"""Tests of the modules in plugins/."""
