"""Actions on model files: `import`, `export`, `ema`, `weights`, `publish`."""

from cli.shared.lazy import lazy_submodules

__getattr__ = lazy_submodules(__name__)
