"""Digests of the code that changes results: results of other code are not reused.

A digest hashes the syntax tree of a module (diffusion/system/syntax.py). Imports within this package are
followed, also those inside functions. Modules that a registry names by text are not followed, so that an
entry that was not chosen changes no digest.

Neutral are the packages system and downloads, the modules directly in diffusion/, and every module with the
line `CHANGES_RESULTS = False`. They are neither hashed nor followed.
"""

import ast
import hashlib
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

from diffusion.system.section import Section
from diffusion.system.syntax import imported_modules, normalized_syntax

ROOT = Path(__file__).parent.parent
PACKAGE = Path(__file__).parent.name

NEUTRAL_PACKAGES = ("system", "downloads")
MARKER = "CHANGES_RESULTS = False"

ModuleDigests = dict[str, str]
"""Module names and the digests of their syntax trees, 16 hex digits each."""


class CodeSince(Section):
    """The code of a training from `step` on: its digest, and torch's version."""

    step: int
    digest: str
    torch: str


@cache
def module_digests(*roots: str) -> ModuleDigests:
    """Return the digests of `roots` and of the modules that they import, without neutral ones.

    The roots are imported first, so that later edits change neither the running code nor the digest. The
    result is computed once a process and must not be changed.
    """
    found: ModuleDigests = {}
    todo = list(roots)
    for root in roots:
        import_module(root)
    while todo:
        name = todo.pop()
        if name not in found and not is_neutral(name):
            tree = module_tree(name)
            found[name] = _digest(normalized_syntax(tree))
            todo.extend(modules_of(tree))
    return dict(sorted(found.items()))


def code_digest(code: ModuleDigests) -> str:
    """Return 16 hex digits for all modules together."""
    return _digest("\n".join(f"{name} {digest}" for name, digest in sorted(code.items())))


def code_since(step: int, code: ModuleDigests) -> CodeSince:
    """Return this code with the installed torch, from `step` on."""
    return CodeSince(step=step, digest=code_digest(code), torch=torch_version())


def torch_version() -> str:
    """Return the installed torch's version without its build, such as 2.13.0."""
    return version("torch").partition("+")[0]


@cache
def library_version() -> str:
    """Return a digest of diffusion/ and torch's version: if equal, equal settings give equal images."""
    root = ROOT / PACKAGE
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes())
    return f"{digest.hexdigest()[:12]} with torch {torch_version()}"


def changed_modules(old: ModuleDigests, new: ModuleDigests) -> list[str]:
    """Return the files of changed, new and removed modules, such as train/loader.py, in order."""
    names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    return [f"{name.removeprefix(f'{PACKAGE}.').replace('.', '/')}.py" for name in names]


def is_neutral(name: str) -> bool:
    """Return whether a module of this package changes no result, by the rule at the top of this file."""
    parts = name.split(".")
    if len(parts) < 3 or parts[1] in NEUTRAL_PACKAGES:
        return module_file(name) != ROOT.joinpath(*parts, "__init__.py")
    return any(ast.unparse(node) == MARKER for node in module_tree(name).body)


def module_file(name: str) -> Path | None:
    """Return the file of a module of this project; None for any other name."""
    base = ROOT.joinpath(*name.split("."))
    return next((file for file in (base.with_suffix(".py"), base / "__init__.py") if file.exists()), None)


@cache
def module_tree(name: str) -> ast.Module:
    """Return a module's syntax tree."""
    file = module_file(name)
    if file is None:
        raise ValueError(f"there is no module {name}")
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def modules_of(tree: ast.AST) -> set[str]:
    """Return the modules of this package that a tree imports; an `__init__` only if it holds code."""
    found = set()
    for name in imported_modules(tree):
        parts = name.split(".")
        for length in range(1, len(parts) + 1):
            module = ".".join(parts[:length])
            file = module_file(module) if parts[0] == PACKAGE else None
            if file and (file.name != "__init__.py" or has_code(module)):
                found.add(module)
    return found


def has_code(name: str) -> bool:
    """Return whether a module holds more than its docstring."""
    return len(module_tree(name).body) > 1


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
