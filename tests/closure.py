"""Which files of the library a stage's body needs, and which of them its `deps:` in dvc.yaml list.

`python -m tests.closure` says which are not listed, and what is listed for nothing, and fails then.
"""

import ast
import re
import sys
from pathlib import Path

import yaml

from diffusion.code_digest import module_file, module_tree, modules_of
from diffusion.system.references import reference_module

ROOT = Path(__file__).parent.parent
STAGES = ROOT / "cli/stages"
GRAPH = ROOT / "dvc.yaml"
LIBRARY = "diffusion"
REFERENCE = re.compile(r"diffusion(\.\w+)+:\w+")


def with_assets(file: Path) -> set[Path]:
    """A library file, and what its package ships beside its modules: templates and style sheets."""
    beside = {asset for asset in file.parent.iterdir() if asset.suffix in (".j2", ".css")}
    return {file, *beside}


def files_of(tree: ast.AST) -> set[Path]:
    """The library's files that a tree imports; a package's own only where it holds code."""
    return {file for name in modules_of(tree) | named(tree) | built(tree) if (file := module_file(name))}


def named(tree: ast.AST) -> set[str]:
    """The library's modules that a registry names by text, to be imported when one is chosen."""
    texts = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return {text for text in texts if isinstance(text, str) and text.startswith(f"{LIBRARY}.")}


def built(tree: ast.AST) -> set[str]:
    """The modules that the entries of registries name, whose `build_…` the tree imports."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and any(alias.name.startswith("build_") for alias in node.names):
            registry = ast.walk(module_tree(str(node.module)))
            texts = [str(part.value) for part in registry if isinstance(part, ast.Constant)]
            found |= {reference_module(text) for text in texts if REFERENCE.fullmatch(text)}
    return found


def parse(file: Path) -> ast.Module:
    """The file's syntax tree."""
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def closure(files: set[Path]) -> set[Path]:
    """The files and all that they import of the library, directly or not."""
    seen: set[Path] = set()
    todo = list(files)
    while todo:
        file = todo.pop()
        if file not in seen:
            seen.add(file)
            todo.extend(files_of(parse(file)))
    return {needed for file in seen for needed in with_assets(file)}


def stage_files() -> dict[str, list[str]]:
    """Return the library files that each module cli/stages/NAME_stage.py needs, by stage."""
    modules = {file.stem.removesuffix("_stage"): file for file in STAGES.glob("*_stage.py")}
    del modules["classifier"]  # no stage of dvc.yaml
    return {
        name: sorted(str(needed.relative_to(ROOT)) for needed in closure(files_of(parse(file))))
        for name, file in modules.items()
    }


def listed_code() -> dict[str, list[str]]:
    """For each stage in dvc.yaml the dependencies that are code: folders and files of the library."""
    stages = yaml.safe_load(GRAPH.read_text(encoding="utf-8"))["stages"]
    return {
        name: [dep for dep in stage["deps"] if dep.startswith(f"{LIBRARY}/")]
        for name, stage in stages.items()
    }


def uncovered(deps: list[str], files: list[str]) -> list[str]:
    """The files that lie below none of the dependencies."""
    return [file for file in files if not any(_is_below(file, dep) for dep in deps)]


def idle(deps: list[str], files: list[str]) -> list[str]:
    """The dependencies below which no file lies, or which lie below another one."""
    return [
        dep
        for dep in deps
        if not any(_is_below(file, dep) for file in files)
        or any(_is_below(dep, other) for other in deps if other != dep)
    ]


def _is_below(file: str, dep: str) -> bool:
    return file == dep or file.startswith(f"{dep}/")


def main() -> None:
    """Hold dvc.yaml against the code."""
    listed, found = listed_code(), []
    for stage, files in stage_files().items():
        found += [f"{stage}: {file} is needed and not listed" for file in uncovered(listed[stage], files)]
        found += [f"{stage}: {dep} is listed for nothing" for dep in idle(listed[stage], files)]
    if found:
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
