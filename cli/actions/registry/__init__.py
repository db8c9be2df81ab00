"""Actions on tracked runs and the champion: `promote`, `rollback`, `history`, `runs`, `reap`, `sync`."""

from cli.shared.lazy import lazy_submodules

__getattr__ = lazy_submodules(__name__)
