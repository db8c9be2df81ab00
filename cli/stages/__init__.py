"""The bodies of stages. `from cli.stages import module` delays its loading until it is used."""

from cli.shared.lazy import lazy_submodules

__getattr__ = lazy_submodules(__name__)
