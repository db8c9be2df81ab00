"""Fuzzing of parsers of outside files: thousands of broken inputs each. `python -m tests.fuzz`.

A parser is a module of `tests/fuzz/parsers/`:

    def seeds() -> list[bytes]         valid inputs, at most some kilobytes
    def parse(path: Path) -> None      reads one file as the product does, in its own folder

and optionally

    NAME = "meta.json"                 the file name, if the reader depends on it
    MUTATORS = (mutate, ...)           in addition to those of tests/fuzz/mutators.py
    def repair(data: bytes) -> bytes   corrects checksums, so that more than these are tested
    EXPECTED = ("import: x", ...)      prefixes of events that tests/fuzz/guard.py would refuse

`parse` may return or raise a DiffctlError. Any other exception, a hang, unbounded memory, a dead process and
executed code are findings. They are stored in `tests/fuzz/corpus/<parser>/`, which the fast tests replay.
"""

import importlib
import pkgutil
from types import ModuleType

from tests.fuzz import parsers

PARSERS = tuple(sorted(module.name for module in pkgutil.iter_modules(parsers.__path__)))


def load_parser(name: str) -> ModuleType:
    """Return the module of that parser."""
    return importlib.import_module(f"{parsers.__name__}.{name}")
