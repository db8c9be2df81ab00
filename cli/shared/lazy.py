"""Modules that are loaded when they are first used, so that `diffctl --help` loads nothing heavy."""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any


class LazyModule:
    """A module by its name, which is loaded when one of its attributes is used."""

    def __init__(self, name: str) -> None:
        object.__setattr__(self, "name", name)

    def __getattribute__(self, attribute: str) -> Any:
        return getattr(import_module(object.__getattribute__(self, "name")), attribute)

    def __setattr__(self, attribute: str, value: Any) -> None:
        setattr(import_module(object.__getattribute__(self, "name")), attribute, value)


def lazy_submodules(package: str) -> Callable[[str], LazyModule]:
    """Return the `__getattr__` of a package (PEP 562) for `from package import module` without loading it."""

    def find(name: str) -> LazyModule:
        if find_spec(f"{package}.{name}") is None:
            raise AttributeError(f"module {package} has no attribute {name}")
        return LazyModule(f"{package}.{name}")

    return find
