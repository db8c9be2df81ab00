"""Actions on scores: `evaluate`, `sweep`, `compare`, `seeds`."""

from cli.shared.lazy import lazy_submodules

__getattr__ = lazy_submodules(__name__)
