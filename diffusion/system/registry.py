"""Registries: the entries of one kind by name, to which the project's plugins add their own.

Every registry is a module-level constant of a torch-free module. An entry is a frozen dataclass that names
its code as "module:name" (diffusion/system/references.py), has `module`, and loads nothing by itself:

    SOURCES: Registry[SourceEntry] = Registry(
        "data.name",
        "`DataConfig` → `Source` (`diffusion/data/source.py`)",
        {"digits": SourceEntry("diffusion.data.sources.digits:Digits")},
    )

A plugin adds one in plugins/__init__.py (diffusion/system/plugins.py):

    SOURCES["rings"] = SourceEntry("plugins.data.rings:Rings")
"""

import re
from collections import UserDict
from collections.abc import Mapping
from typing import Any, TypeVar

from diffusion.system.errors import UsageError, printable

PLUGINS = "plugins"  # the package of the project's own entries
NAME = re.compile(r"[a-z0-9][a-z0-9.+-]{0,99}")  # part of file names, command lines and lists

Entry = TypeVar("Entry")


class Registry(UserDict[str, Entry]):
    """The entries of one kind by name; a name is assigned once.

    `key` is the key of params.yaml that selects an entry. `contract` describes in docs/registries.md what an
    entry is, or what its builder makes of what. Assignment raises UsageError for a name that exists or is
    invalid, and for code outside the folder that the stages of its section depend on.
    """

    def __init__(self, key: str, contract: str, entries: Mapping[str, Entry]) -> None:
        self.key = key
        self.contract = contract
        super().__init__(entries)
        self.built_in = frozenset(entries)
        REGISTRIES.append(self)

    def __setitem__(self, name: str, entry: Entry) -> None:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise UsageError(
                f"{self.key}: {printable(name):.120} is no name: use a-z, 0-9, '.', '+' and '-', at most 100"
            )
        if name in self.data:
            raise UsageError(f"{self.key}: the name {name} is taken: give the new entry another one")
        module, folder = _module(entry), f"{PLUGINS}.{self.key.partition('.')[0]}."
        if f"{module}.".startswith(f"{PLUGINS}.") and not module.startswith(folder):
            place = folder.replace(".", "/")
            raise UsageError(f"{self.key}: the code of {name} is in {module}: move it to a module in {place}")
        super().__setitem__(name, entry)

    @property
    def plugins(self) -> list[str]:
        """The names of the entries that plugins added."""
        return [name for name in self if name not in self.built_in]

    def module(self, name: str) -> str:
        """Return the module that computes an entry; its code belongs to the digest of what uses it.

        It is the entry's `module`, or the module of an entry that is a function.
        """
        return _module(self[name])


def _module(entry: Any) -> str:
    return str(entry.module if hasattr(entry, "module") else entry.__module__)


REGISTRIES: list[Registry[Any]] = []
"""All registries whose modules are imported."""
