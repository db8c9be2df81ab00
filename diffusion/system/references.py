"""References "package.module:name" in registries, imported when an entry is built."""

import difflib
import importlib
import operator
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any

from diffusion.system.registry import is_plugin, plugin_errors


def load_reference(reference: str) -> Any:
    """Import the module and return the object of "package.module:name"; UsageError for a broken plugin."""
    module, _, name = reference.partition(":")
    with plugin_errors() if is_plugin(module) else nullcontext():
        return operator.attrgetter(name)(importlib.import_module(module))


def reference_module(reference: str) -> str:
    """Return the module of "package.module:name"; its code belongs to the entry's digest."""
    return reference.partition(":")[0]


class BuilderEntry:
    """An entry with a `builder`, a "module:name" that is imported when it is used."""

    builder: str

    @property
    def module(self) -> str:
        """The module of the builder; its code belongs to the digest of what uses the entry."""
        return reference_module(self.builder)


class OptionsEntry:
    """An entry with `options`, its own class of options as a torch-free "module:name"."""

    options: str

    def parse(self, values: dict[str, Any]) -> Any:
        """Return the options as their class; pydantic's ValidationError for an invalid one."""
        return load_reference(self.options).model_validate(values)

    def checked_options(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return the options with their defaults; pydantic's ValidationError for an invalid one."""
        checked: dict[str, Any] = self.parse(values).model_dump(mode="json")
        return checked


def is_entry(name: Any, registry: Mapping[str, object]) -> bool:
    """Return whether a value from a file, of any type, names an entry of the registry."""
    return isinstance(name, str) and name in registry


class UnknownName(ValueError):
    """A name that no entry of its registry has."""


def check_name(name: str, registry: Mapping[str, object]) -> str:
    """Return the name; UnknownName lists the registry's entries if it is none of them."""
    if name not in registry:
        near = nearest(name, registry)
        hint = f"; did you mean {near}?" if near else ""
        raise UnknownName(f"allowed are {', '.join(registry)} (got {name!r:.120}{hint})")
    return name


OTHER_WORDS = {"epochs": "steps", "iterations": "steps", "learning_rate": "lr"}  # of other projects


def nearest(given: str, names: Iterable[str]) -> str | None:
    """Return the name that is most similar to the given one, if any is."""
    by_lower = {name.lower(): name for name in names}
    word = given.strip().lower()
    found = difflib.get_close_matches(OTHER_WORDS.get(word, word), by_lower, n=1)
    return by_lower[found[0]] if found else None
