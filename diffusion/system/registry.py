"""Registries, the entries of one kind by name, and the project's plugins, which add their own to them.

Every registry is a module-level constant of a torch-free module. An entry is a frozen dataclass that names
its code as "package.module:name", has `module`, and loads nothing by itself:

    SOURCES: Registry[SourceEntry] = Registry(
        "data.name",
        "`DataConfig` → `Source` (`diffusion/data/source.py`)",
        {"digits": SourceEntry("diffusion.data.sources.digits:Digits")},
    )

plugins/__init__.py adds an entry. Its code is in plugins/<section>/ and is imported when it is used:

    SOURCES["rings"] = SourceEntry("plugins.data.rings:Rings")

Plugins are loaded by an explicit step before entries are used: by `diffusion/project.py` for commands, ranks
and workers, and by a registered model from its archive. Importing the library executes no code of a project.
"""

import difflib
import importlib
import inspect
import operator
import re
import sys
import traceback
from collections import UserDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from importlib.util import module_from_spec
from pathlib import Path
from typing import Any, TypeVar

from diffusion.system.errors import UsageError, printable, reason
from diffusion.system.loaded_code import SourceFinder

PLUGINS = "plugins"  # the package of the project's own entries
ENTRIES = f"{PLUGINS}/__init__.py"
NAME = re.compile(r"[a-z0-9][a-z0-9.+-]{0,99}")  # part of file names, command lines and lists
SLOW = frozenset({"torch", "mlflow", "prefect", "matplotlib"})
SLOW_IMPORTS: list[str] = []  # those that plugins/__init__.py loaded
ARCHIVE = Path(__file__).parents[2]  # a folder, except in a registered model

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
        if is_plugin(module) and not module.startswith(folder):
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
"""The registries in imported modules."""


def load_package(root: Path) -> None:
    """Import the package `plugins` of the folder or archive `root`, if there is one.

    UsageError names the file, the line and the error.
    """
    spec = SourceFinder.find_spec(PLUGINS, [str(root)])
    if spec is None or spec.loader is None or spec.origin is None:
        if any((root / PLUGINS).glob("**/*.py")):
            raise UsageError(f"{root / ENTRIES} is missing: it adds the entries of plugins to registries")
        return
    if PLUGINS in sys.modules:
        return  # it imports the library itself
    module = sys.modules[PLUGINS] = module_from_spec(spec)
    slow = SLOW - sys.modules.keys()
    try:
        with plugin_errors():
            spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(PLUGINS, None)
        raise
    SLOW_IMPORTS.extend(sorted(slow & sys.modules.keys()))


def plugins_root() -> Path | None:
    """Return the folder that contains the loaded package `plugins`; None without one."""
    module = sys.modules.get(PLUGINS)
    file = module and module.__file__
    return Path(file).parents[1] if file else None


def plugins_folder() -> Path | None:
    """Return the folder of the package; None if it adds no entry."""
    root = plugins_root()
    return root / PLUGINS if root and any(registry.plugins for registry in REGISTRIES) else None


def is_plugin(module: str) -> bool:
    """Return whether a module belongs to the package `plugins`."""
    return module.partition(".")[0] == PLUGINS


@contextmanager
def plugin_errors() -> Iterator[None]:
    """Raise UsageError, with file and line, for an error or an exit while a plugin is imported."""
    try:
        yield
    except (Exception, SystemExit) as error:
        raise plugin_error(error, find_plugin_line(error) or ENTRIES) from error


def plugin_error(error: BaseException, place: str) -> UsageError:
    """Return the UsageError for an error of a plugin's code in this place."""
    return UsageError(f"{place}: {reason(error)}: correct it, or remove its entry from {ENTRIES}")


def find_plugin_line(error: BaseException) -> str | None:
    """Return the last file and line of the package in the traceback; None without one."""
    frames = traceback.walk_tb(error.__traceback__)
    places: list[tuple[str, int | None]] = [(frame.f_code.co_filename, line) for frame, line in frames]
    if isinstance(error, SyntaxError) and error.filename:
        places.append((error.filename, error.lineno))
    root = plugins_root()
    for file, line in reversed(places):
        if root and Path(file).is_relative_to(root / PLUGINS):
            return f"{Path(file).relative_to(root)}, line {line}"
    return None


def function_place(function: Callable[..., object]) -> str:
    """Return the file and line of a Python function; only the file's name outside of the project."""
    code, root = inspect.unwrap(function).__code__, plugins_root()
    file = Path(code.co_filename)
    shown = file.relative_to(root) if root and file.is_relative_to(root) else file.name
    return f"{shown}, line {code.co_firstlineno}"


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


class WithOptions:
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
    """Return the name; if it is no entry, UnknownName lists the entries."""
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
