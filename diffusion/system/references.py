"""References "package.module:name" in registries, imported when an entry is built."""

import importlib
import operator
from collections.abc import Mapping
from typing import Any


def load_reference(reference: str) -> Any:
    """Import the module and return the object of "package.module:name"."""
    module, _, name = reference.partition(":")
    return operator.attrgetter(name)(importlib.import_module(module))


def reference_module(reference: str) -> str:
    """Return the module of "package.module:name"; its code belongs to the entry's digest."""
    return reference.partition(":")[0]


def check_name(name: str, registry: Mapping[str, object]) -> str:
    """Return the name; ValueError lists the registry's entries if it is none of them."""
    if name not in registry:
        raise ValueError(f"allowed are {', '.join(registry)} (got {name!r:.120})")
    return name
