"""Actions on images: `sample`, `edit`, `encode`, `interpolate`, `nll`, `grid`, `show`."""

from cli.shared.lazy import lazy_submodules

__getattr__ = lazy_submodules(__name__)
