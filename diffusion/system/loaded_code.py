"""The source of every loaded module of the library and of plugins, as it was compiled.

A file may be edited after its module was loaded, and Python takes a .pyc file for current by time and size.
So these modules have a loader that keeps the source, and uses a .pyc file only if that has the source's hash
(a "checked hash-based" one of PEP 552).
"""

import marshal
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import MAGIC_NUMBER, cache_from_source, source_hash
from pathlib import Path
from types import CodeType

PACKAGES = ("diffusion", "plugins")
CHECKED_HASH = (0b11).to_bytes(4, "little")  # flags of a .pyc file


class SourceLoader(SourceFileLoader):
    """Loads a module and keeps its source."""

    @cached_property
    def source(self) -> bytes:
        """The content of the module's file when it was loaded."""
        return super().get_data(self.path)

    def get_data(self, path: str) -> bytes:
        """Return the kept source, or the content of another file."""
        return self.source if path == self.path else super().get_data(path)

    def get_code(self, fullname: str) -> CodeType | None:
        """Return the code of the kept source, from a .pyc file with its hash if there is one."""
        cached = cache_from_source(self.path)
        head = MAGIC_NUMBER + CHECKED_HASH + source_hash(self.source)
        with suppress(OSError):
            if self.get_data(cached).startswith(head):
                return super().get_code(fullname)
        code: CodeType = self.source_to_code(self.source, self.path)
        if not sys.dont_write_bytecode:
            self.set_data(cached, head + marshal.dumps(code))
        return code


class SourceFinder:
    """Finds modules of these packages, with a SourceLoader unless they are in an archive."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, _: object = None) -> ModuleSpec | None:
        """Return the spec of a module of these packages; None for any other name."""
        spec = PathFinder.find_spec(name, path) if name.partition(".")[0] in PACKAGES else None
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = SourceLoader(name, spec.loader.path)
        return spec


def keep_sources() -> None:
    """Keep the source of every module of these packages that is loaded from now on."""
    sys.meta_path.insert(0, SourceFinder)


def loader_of(name: str) -> SourceLoader | None:
    """Return the loader of a loaded module, with its source; None if that was not kept."""
    loader = getattr(getattr(sys.modules.get(name), "__spec__", None), "loader", None)
    return loader if isinstance(loader, SourceLoader) else None


def module_source(name: str, file: Path) -> bytes:
    """Return the source that a module was compiled from, or would be now."""
    return loader.source if (loader := loader_of(name)) else file.read_bytes()
