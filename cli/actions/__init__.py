"""The bodies of commands. `from cli.actions import module` delays its loading until it is used."""

from cli.shared.lazy import lazy_submodules

__getattr__ = lazy_submodules(__name__)
