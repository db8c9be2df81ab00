"""Actions that run trials: `search`, `verdict`."""

from cli.shared.lazy import lazy_submodules

__getattr__ = lazy_submodules(__name__)
