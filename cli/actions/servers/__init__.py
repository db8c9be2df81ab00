"""Actions on servers: `serve`, `playground`, `up`, `down`, `status`, `ui`."""

from cli.shared.lazy import lazy_submodules

__getattr__ = lazy_submodules(__name__)
