"""Actions on the project: `init`, `upgrade`, `use`, `set`, `check`, `schema`, `prune`, `docs`."""

from cli.shared.lazy import lazy_submodules

__getattr__ = lazy_submodules(__name__)
