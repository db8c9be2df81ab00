"""The version of diffctl, which pyproject.toml repeats. No digest of code contains it."""

VERSION = "0.2.0"
