"""The project's own code: its package `plugins`, imported together with this library.

plugins/__init__.py adds entries to registries. An entry names code in plugins/<section>/, such as
plugins/data/ for an entry that `data.name` selects; it is imported when it is used. The module
`diffusion/__init__.py` calls `load_plugins` before any other module of the library is imported. So every
process has the same entries: commands, ranks, workers and registered models.
"""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path

from diffusion.system.errors import UsageError, reason
from diffusion.system.registry import PLUGINS, REGISTRIES
from diffusion.system.repository import PARAMS

ENTRIES = f"{PLUGINS}/__init__.py"
SLOW = frozenset({"torch", "mlflow", "prefect", "matplotlib"})
SLOW_IMPORTS: list[str] = []  # those that plugins/__init__.py loaded
ARCHIVE = Path(__file__).parents[2]  # a folder, except in a registered model


def load_plugins() -> None:
    """Import the package `plugins` next to params.yaml in the working directory, if there is one.

    A registered model has its own in its archive. UsageError names the file, the line and the error.
    """
    root = ARCHIVE if ARCHIVE.is_file() else Path.cwd() if Path(PARAMS).is_file() else None
    if root is not None:
        load_package(root)


def load_package(root: Path) -> None:
    """Import the package `plugins` of the folder or archive `root`, if there is one."""
    spec = PathFinder.find_spec(PLUGINS, [str(root)])
    if spec is None or spec.loader is None or spec.origin is None:
        if any((root / PLUGINS).glob("**/*.py")):
            raise UsageError(f"{root / ENTRIES} is missing: it adds the entries of plugins to registries")
        return
    if (other := sys.modules.get(PLUGINS)) is not None:
        if other.__file__ != spec.origin:
            raise UsageError(f"{spec.origin} has the name of the loaded module {other.__file__}")
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
    """Raise UsageError, with file and line, for an error while a plugin is imported."""
    try:
        yield
    except Exception as error:
        remedy = f"correct it, or remove its entry from {ENTRIES}"
        raise UsageError(f"{_place(error)}: {reason(error)}: {remedy}") from error


def _place(error: BaseException) -> str:
    """Return the last file and line of the package in the traceback; the file of the entries without one."""
    root = plugins_root()
    frames = traceback.extract_tb(error.__traceback__)
    places = [(ENTRIES, 0), *((frame.filename, frame.lineno or 0) for frame in frames)]
    if isinstance(error, SyntaxError) and error.filename:
        places.append((error.filename, error.lineno or 0))
    own = [place for place in places if root and Path(place[0]).is_relative_to(root / PLUGINS)]
    file, line = own[-1] if own else places[0]
    name = str(Path(file).relative_to(root)) if own and root else file
    return f"{name}, line {line}" if line else name
