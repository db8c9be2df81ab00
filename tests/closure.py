"""The library files that the body of each stage needs, compared with its `deps:` in dvc.yaml.

`python -m tests.closure` fails if files are missing or unnecessary, and lists them.
"""

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import yaml

from diffusion.code_digest import module_file, module_tree, modules_of
from diffusion.system.registry import reference_module

ROOT = Path(__file__).parent.parent
STAGES = ROOT / "cli/stages"
GRAPH = ROOT / "dvc.yaml"
LIBRARY = "diffusion"
REFERENCE = re.compile(r"diffusion(\.\w+)+:\w+")


def files_of(tree: ast.AST) -> set[Path]:
    """Return the library files that a tree imports; an `__init__.py` only if it contains code."""
    names = modules_of(tree) | modules_in_strings(tree) | modules_of_builders(tree)
    return {file for name in names if (file := module_file(name))}


def modules_in_strings(tree: ast.AST) -> set[str]:
    """Return the library modules that strings name, such as the lazily imported entries of a registry."""
    texts = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return {text for text in texts if isinstance(text, str) and text.startswith(f"{LIBRARY}.")}


def modules_of_builders(tree: ast.AST) -> set[str]:
    """Return the modules in the entries of each registry with a `build_…` function that the tree imports."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and any(alias.name.startswith("build_") for alias in node.names):
            registry = ast.walk(module_tree(str(node.module)))
            texts = [str(part.value) for part in registry if isinstance(part, ast.Constant)]
            found |= {reference_module(text) for text in texts if REFERENCE.fullmatch(text)}
    return found


@cache
def parse(file: Path) -> ast.Module:
    """Return the file's syntax tree."""
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def closure(files: set[Path]) -> set[Path]:
    """Return the files, all library files that they import, and the templates next to these."""
    seen: set[Path] = set()
    todo = list(files)
    while todo:
        file = todo.pop()
        if file not in seen:
            seen.add(file)
            todo.extend(files_of(parse(file)))
    siblings = (asset for file in seen for asset in file.parent.iterdir())
    return seen | {asset for asset in siblings if asset.suffix in (".j2", ".css")}


def problems() -> Iterator[str]:
    """Yield the files that the `deps:` of a stage lack, and dependencies without a file or below another."""
    stages = yaml.safe_load(GRAPH.read_text(encoding="utf-8"))["stages"]
    for stage, entry in stages.items():
        needed = closure(files_of(parse(STAGES / f"{stage}_stage.py")))
        files = sorted(str(file.relative_to(ROOT)) for file in needed)
        deps = [dep for dep in entry["deps"] if dep.startswith(f"{LIBRARY}/")]
        for file in files:
            if not any(f"{file}/".startswith(f"{dep}/") for dep in deps):
                yield f"{stage}: {file} is needed and not listed"
        for dep in deps:
            others = [f"{other}/" for other in deps if other != dep]
            is_needed = any(f"{file}/".startswith(f"{dep}/") for file in files)
            if not is_needed or f"{dep}/".startswith(tuple(others)):
                yield f"{stage}: {dep} is listed and not needed"


if __name__ == "__main__":
    sys.exit("\n".join(problems()) or None)
