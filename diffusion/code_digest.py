"""Digests of the code that changes results: results of other code are not reused.

A digest hashes the syntax tree of a module, as text that is equal on all Python versions and without parts
that have no effect on results: docstrings, comments, messages of exceptions and warnings, printing, and code
for type checkers. Imports within this package and the project's plugins are followed, also those inside
functions. Modules that a registry names by text are not followed, so that an entry that was not chosen
changes no digest. `code_of` adds the chosen entries: a result depends on its entries, not only on their code,
since an edited entry may name another function. So the key of finished work contains each chosen entry, with
all its fields except `source`.

Neutral are the packages system and downloads, the modules directly in diffusion/, and every module with the
line `IN_CODE_DIGEST = False`. They are neither hashed nor followed, nor is plugins/__init__.py, which has
entries and no code.
"""

import ast
import hashlib
import operator
import re
import socket
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from functools import cache, partial
from importlib import import_module
from importlib.metadata import version
from importlib.util import resolve_name
from inspect import getclosurevars
from pathlib import Path
from types import FunctionType
from typing import Any

from pydantic import Field

from diffusion.system.errors import DiffctlError
from diffusion.system.loaded_code import module_source
from diffusion.system.registry import (
    PLUGINS,
    Registry,
    is_plugin,
    plugin_errors,
    plugins_folder,
    plugins_root,
)
from diffusion.system.section import Section, fingerprint
from diffusion.version import VERSION

ROOT = Path(__file__).parent.parent
PACKAGE = Path(__file__).parent.name

NEUTRAL_PACKAGES = ("system", "downloads")
MARKER = "IN_CODE_DIGEST = False"
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
IGNORED_FIELDS = {"ctx", "kind", "type_comment"}  # redundant
REPORTING = {"print", "warnings.warn"}  # calls that only report

ModuleDigests = dict[str, str]
"""Digests of modules' syntax trees and of registry entries by their keys, 16 hex digits each."""

Chosen = tuple[Registry[Any], str]
"""A registry, and the name of one of its entries."""

MODULE = re.compile(rf"\b(?:{PACKAGE}|{PLUGINS})(?:\.\w+)+(?=:\w)")  # of a "module:name"


class CodeSince(Section):
    """The code of a training from `step` on: its digest, the digests of its plugins, and two versions.

    `diffctl` is empty in files of versions before 0.2.0, and no part of any digest.
    """

    step: int
    digest: str
    torch: str
    plugins: ModuleDigests = Field(default_factory=dict, exclude_if=operator.not_)
    diffctl: str = Field(default="", max_length=100, exclude_if=operator.not_)


@cache
def module_digests(*roots: str) -> ModuleDigests:
    """Return the digests of `roots` and of the modules that they import, without neutral ones.

    The roots are imported first, and the digests are of what was compiled, whatever the files contain now.
    The result is computed once a process and must not be changed.
    """
    found: ModuleDigests = {}
    todo = list(roots)
    for root in roots:
        with plugin_errors() if is_plugin(root) else nullcontext():
            import_module(root)
    while todo:
        name = todo.pop()
        if name not in found and not is_neutral(name):
            tree = module_tree(name)
            found[name] = syntax_digest(tree)
            todo.extend(modules_of(tree))
    return dict(sorted(found.items()))


def code_digest(code: ModuleDigests) -> str:
    """Return 16 hex digits for all modules together."""
    return _digest("\n".join(f"{name} {digest}" for name, digest in sorted(code.items())))


def plugin_card(field: str, code: ModuleDigests) -> dict[str, str]:
    """Return a card's `field` with the digest of the plugins in this code; empty without one."""
    plugins = plugin_digests(code)
    return {field: code_digest(plugins)} if plugins else {}


def plugin_digests(code: ModuleDigests) -> ModuleDigests:
    """Return the digests of plugins: their modules and their entries."""
    return {name: digest for name, digest in code.items() if is_plugin(name)}


def code_since(step: int, code: ModuleDigests) -> CodeSince:
    """Return this code with the installed torch, from `step` on."""
    plugins = plugin_digests(code)
    return CodeSince(
        step=step, digest=code_digest(code), torch=torch_version(), plugins=plugins, diffctl=VERSION
    )


def torch_version() -> str:
    """Return the installed torch's version without its build, such as 2.13.0."""
    return version("torch").partition("+")[0]


@cache
def library_version() -> str:
    """Return a digest of diffusion/ and plugins/, and torch's version: equal ones give equal images."""
    digest = hashlib.sha256()
    for root in filter(None, (ROOT / PACKAGE, plugins_folder())):
        for file in sorted(root.rglob("*.py")):
            name = ".".join(file.relative_to(root.parent).with_suffix("").parts).removesuffix(".__init__")
            digest.update(f"{file.relative_to(root)}\0".encode() + module_source(name, file))
    return f"{digest.hexdigest()[:12]} with torch {torch_version()}"


def check_worker_version(version: str) -> None:
    """Raise DiffctlError if diffctl or torch on this machine differ from the driver's."""
    if (own := library_version()) != version:
        host = socket.gethostname()
        raise DiffctlError(f"{host} has another diffctl or torch than the driver ({own}, not {version})")


def changed_modules(old: ModuleDigests, new: ModuleDigests) -> list[str]:
    """Return the files of changed, new and removed modules and entries, such as train/loop.py, in order."""
    return [_file(name) for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]


def _file(name: str) -> str:
    module, _, entry = name.partition(" ")
    file = f"{module.removeprefix(f'{PACKAGE}.').replace('.', '/')}.py"
    return f"{file} ({entry})" if entry else file


def is_neutral(name: str) -> bool:
    """Return whether the digests leave a module of this package out, by the rule at the top of this file."""
    parts = name.split(".")
    if parts[0] == PACKAGE and (len(parts) < 3 or parts[1] in NEUTRAL_PACKAGES):
        return module_file(name) != ROOT.joinpath(*parts, "__init__.py")
    return any(ast.unparse(node) == MARKER for node in module_tree(name).body)


def module_file(name: str) -> Path | None:
    """Return the file of a module of this project or its plugins; None for any other name."""
    root = plugins_root() if is_plugin(name) else ROOT
    base = (root or ROOT).joinpath(*name.split("."))
    return next((file for file in (base.with_suffix(".py"), base / "__init__.py") if file.exists()), None)


def module_tree(name: str) -> ast.Module:
    """Return a module's syntax tree, as it was loaded if it is, with absolute imports."""
    file = module_file(name)
    if file is None:
        raise ValueError(f"there is no module {name}")
    return parse_module(name, file, module_source(name, file))


@cache
def parse_module(name: str, file: Path, source: bytes) -> ast.Module:
    """Return the syntax tree of a module's source, with absolute imports."""
    tree = ast.parse(source, str(file))
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            node.module, node.level = resolve_name("." * node.level + (node.module or ""), package), 0
    return tree


def modules_of(tree: ast.AST) -> set[str]:
    """Return the modules of this package and of plugins that a tree imports.

    An `__init__` counts only if it has more than its docstring, and never that of the two packages.
    """
    found = set()
    for name in imported_modules(tree):
        parts = name.split(".")
        for length in range(2, len(parts) + 1):
            module = ".".join(parts[:length])
            file = module_file(module) if parts[0] in (PACKAGE, PLUGINS) else None
            if file and (file.name != "__init__.py" or len(module_tree(module).body) > 1):
                found.add(module)
    return found


def syntax_digest(tree: ast.Module) -> str:
    """Return 16 hex digits for a module's code, without what has no effect on results."""
    return _digest(normalized_syntax(tree))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def normalized_syntax(node: Any) -> str:
    """Return a tree as text: every node with its non-empty fields."""
    if isinstance(node, ast.Constant):
        return f"{type(node.value).__name__} {node.value!r}"
    if isinstance(node, list):
        kept = (item for item in node if not (_is_for_types(item) or _only_reports(item)))
        return f"[{' '.join(map(normalized_syntax, kept))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    if isinstance(node, ast.Raise):  # without its message
        raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        return f"Raise {raised and ast.unparse(raised)}"
    fields = {name: value for name, value in ast.iter_fields(node) if name not in IGNORED_FIELDS}
    if isinstance(node, ast.JoinedStr):  # Python 3.12 appends an empty text to some
        fields["values"] = [part for part in node.values if getattr(part, "value", None) != ""]
    if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
        fields["body"] = node.body[1:]
    parts = (
        f"{name}={normalized_syntax(value)}" for name, value in fields.items() if value not in (None, [])
    )
    return f"{type(node).__name__}({' '.join(parts)})"


def imported_modules(tree: ast.AST) -> Iterator[str]:
    """Yield each module, and each name imported from one, in a tree; without those for type checkers."""
    for node in ast.iter_child_nodes(tree):
        if _is_for_types(node):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute here"
            assert node.module, "an absolute import names its module"
            yield from [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            yield from imported_modules(node)


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def _only_reports(node: ast.AST) -> bool:
    call = node.value if isinstance(node, ast.Expr) else None
    return isinstance(call, ast.Call) and ast.unparse(call.func) in REPORTING


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
