"""What happens to files from outside: each parser gets thousands of broken inputs. `python -m tests.fuzz`.

A parser is a module of `tests/fuzz/parsers/`:

    def seeds() -> list[bytes]         valid inputs, made small: at most some kilobytes
    def parse(path: Path) -> None      reads one file as the product does; it has a folder of its own

and where it needs them

    NAME = "meta.json"                 what the file is called, where its reader looks at that
    MUTATORS = (mutate, ...)           beside those of tests/fuzz/mutators.py
    def repair(data: bytes) -> bytes   makes a checksum right again, so that more than that is tried
    EXPECTED = ("import: x", ...)      beginnings of what it may do that tests/fuzz/guard.py would refuse

`parse` may return or raise a DiffctlError. Whatever else it raises, a hang, memory without bound, a dead
process and code that is run are findings. Each is made small and kept in `tests/fuzz/corpus/<parser>/`, which
the fast tests replay.
"""

import importlib
import pkgutil
from types import ModuleType

from tests.fuzz import parsers

PARSERS = tuple(sorted(module.name for module in pkgutil.iter_modules(parsers.__path__)))


def load_parser(name: str) -> ModuleType:
    """The module of that parser."""
    return importlib.import_module(f"{parsers.__name__}.{name}")
