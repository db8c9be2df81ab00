"""Which modules a stage's body needs: what its `deps:` in dvc.yaml list beside its data.

`python -m tests.closure --write` puts the lists into dvc.yaml; without the option it says what differs.
"""

import ast
import io
import re
import sys
from pathlib import Path

from ruamel.yaml import YAML

from diffusion.code import module_file, module_tree, modules_of
from diffusion.registry import module_named

ROOT = Path(__file__).parent.parent
STAGES = ROOT / "cli/stages.py"
GRAPH = ROOT / "dvc.yaml"
LIBRARY = "diffusion"
REFERENCE = re.compile(r"diffusion(\.\w+)+:\w+")
CODE = ROOT / "diffusion/code.py"


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
            found |= {module_named(text) for text in texts if REFERENCE.fullmatch(text)}
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
            if file != CODE:  # it names modules to leave them out
                todo.extend(files_of(parse(file)))
    return {needed for file in seen for needed in with_assets(file)}


def stage_modules() -> dict[str, list[str]]:
    """For each stage body in cli/stages.py the files it needs, relative to the root, sorted."""
    bodies = [
        node for node in parse(STAGES).body if isinstance(node, ast.FunctionDef) and node.decorator_list
    ]
    return {
        body.name: sorted(str(file.relative_to(ROOT)) for file in closure(files_of(body))) for body in bodies
    }


def is_module(dep: str) -> bool:
    """Whether a dependency in dvc.yaml is one of the library's files, not data."""
    return dep.startswith(f"{LIBRARY}/")


def with_modules(text: str) -> str:
    """The text of dvc.yaml with every stage's module list as it must be, its data and comments kept."""
    yaml = YAML()
    yaml.width = 110
    yaml.indent(mapping=2, sequence=4, offset=2)
    graph = yaml.load(text)
    for name, modules in stage_modules().items():
        stage = graph["stages"][name]
        stage["deps"] = [dep for dep in stage.get("deps", []) if not is_module(dep)] + modules
    out = io.StringIO()
    yaml.dump(graph, out)
    return out.getvalue()


def main() -> None:
    """Compare dvc.yaml with the code, or rewrite it."""
    text = GRAPH.read_text(encoding="utf-8")
    wanted = with_modules(text)
    if "--write" in sys.argv[1:]:
        GRAPH.write_text(wanted, encoding="utf-8")
    elif wanted != text:
        sys.exit("dvc.yaml does not list what the stages import: run `python -m tests.closure --write`")


if __name__ == "__main__":
    main()
