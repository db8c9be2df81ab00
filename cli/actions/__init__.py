"""The bodies of commands in one folder per subject. Their modules load when they are used."""

from cli.shared.lazy import lazy_submodules

__getattr__ = lazy_submodules(__name__)
