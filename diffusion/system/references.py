"""What is chosen by a name: registries of entries, which load their code when it is built, not before."""

import importlib
import operator
from collections.abc import Mapping
from typing import Any


def load_reference(reference: str) -> Any:
    """The object that "package.module:name" means; its module is imported only now."""
    module, _, name = reference.partition(":")
    return operator.attrgetter(name)(importlib.import_module(module))


def reference_module(reference: str) -> str:
    """The module of "package.module:name", whose code an entry computes by."""
    return reference.partition(":")[0]


def check_name(name: str, registry: Mapping[str, object]) -> str:
    """The name; ValueError lists what there is when the registry has no such entry."""
    if name not in registry:
        raise ValueError(f"allowed are {', '.join(registry)} (got {name!r:.120})")
    return name
