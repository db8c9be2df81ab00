"""Digests of registry entries with the code that they name.

A result depends on its entries, not only on their code: an edited entry may name another function. So the key
of finished work contains each chosen entry, with all its fields except `source`.
"""

import ast
import re
from collections.abc import Iterable
from functools import cache, partial
from inspect import getclosurevars
from types import FunctionType
from typing import Any

from diffusion.code_digest import PACKAGE, ModuleDigests, module_digests, module_tree, normalized_syntax
from diffusion.system.registry import PLUGINS, Registry
from diffusion.system.section import fingerprint

Chosen = tuple[Registry[Any], str]
"""A registry, and the name of one of its entries."""

MODULE = re.compile(rf"\b(?:{PACKAGE}|{PLUGINS})(?:\.\w+)+(?=:\w)")  # of a "module:name"


def code_of(roots: Iterable[str], chosen: Iterable[Chosen]) -> ModuleDigests:
    """Return the digests of `roots`, of the chosen entries, and of all modules that these name and import.

    The key of an entry is its file as a module, its registry and its name, such as
    "plugins.__init__ sample.sampler trapezoid".
    """
    texts = {_key(registry, name): entry_text(registry[name]) for registry, name in chosen}
    modules = module_digests(*roots, *sorted(set(MODULE.findall(" ".join(texts.values())))))
    return {**modules, **{key: fingerprint(text) for key, text in texts.items()}}


def _key(registry: Registry[Any], name: str) -> str:
    file = f"{PLUGINS}.__init__" if name in registry.plugins else type(registry[name]).__module__
    return f"{file} {registry.key} {name}"


def entry_text(value: Any) -> str:
    """Return an entry, or a value in one, as text that is equal in all processes and on all Python versions.

    A function is described by its name, its code and the values that it captures.
    """
    if isinstance(value, dict):
        return "".join(f"{name}={entry_text(one)}," for name, one in value.items() if name != "source")
    if isinstance(value, list | tuple):
        return f"[{','.join(map(entry_text, value))}]"
    if isinstance(value, partial):
        return entry_text([value.func, value.args, value.keywords])
    if isinstance(value, type):
        return f"{value.__module__}:{value.__qualname__}"
    if isinstance(value, FunctionType):
        captured = entry_text(getclosurevars(value).nonlocals)
        return f"{value.__module__}:{value.__qualname__} {_syntax(value)} {captured}"
    return (
        f"{entry_text(type(value))}({entry_text(vars(value))})" if hasattr(value, "__dict__") else repr(value)
    )


@cache
def _syntax(function: FunctionType) -> str:
    """Return the code of a function of the library or of plugins; functions of one line count together."""
    if function.__module__.partition(".")[0] not in (PACKAGE, PLUGINS):
        return ""
    nodes = ast.walk(module_tree(function.__module__))
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.Lambda)]
    first = function.__code__.co_firstlineno
    return " ".join(normalized_syntax(node) for node in functions if node.lineno == first)
