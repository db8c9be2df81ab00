"""The house rules: which way imports point, what a stage depends on, what help loads."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import yaml

from diffusion.code import module_file
from diffusion.syntax import imported
from tests.closure import GRAPH, ROOT, is_module, parse, stage_modules, with_modules

MAY_USE = {
    "diffusion": {"diffusion"},
    "tracking": {"tracking", "diffusion"},
    "flows": {"flows", "tracking", "diffusion"},
    "cli": {"cli", "flows", "tracking", "diffusion"},
}
SERVICES = {"prefect", "dvc", "mlflow", "typer", "ray", "fastapi"}
MAY_SERVE = {
    "diffusion": set(),
    "tracking": {"mlflow", "fastapi"},
    "flows": {"prefect", "dvc", "ray"},
    "cli": {"typer", "fastapi"},
}
FILES = sorted(file for package in MAY_USE for file in (ROOT / package).rglob("*.py"))


def package(file: Path) -> str:
    return file.relative_to(ROOT).parts[0]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_one_way(file: Path) -> None:
    roots = {name.split(".")[0] for name in imported(parse(file))}
    assert roots & set(MAY_USE) <= MAY_USE[package(file)]
    assert roots & SERVICES <= MAY_SERVE[package(file)]


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {file: set(loaded(file)) - {file} for file in FILES}
    order = list(TopologicalSorter(graph).static_order())  # CycleError names the circle
    assert set(FILES) <= set(order)


def loaded(file: Path) -> Iterator[Path]:
    """The project's files that importing this one loads: the imports outside functions."""
    for node in parse(file).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = list(imported(ast.Module(body=[node], type_ignores=[])))
            found = [module_file(name) for name in names if name.split(".")[0] in MAY_USE]
            # `from package import module` loads the module; the package is its parent, not a circle.
            yield from (path for path in found if path and not (path.name == "__init__.py" and found[1:]))


def test_every_stage_depends_on_what_its_body_imports() -> None:
    stages = yaml.safe_load(GRAPH.read_text())["stages"]
    bodies = stage_modules()
    assert set(stages) == set(bodies)
    listed = {name: [dep for dep in stage["deps"] if is_module(dep)] for name, stage in stages.items()}
    assert listed == bodies, "run `python -m tests.closure --write`"


def test_rewriting_the_module_lists_keeps_the_rest_of_the_graph() -> None:
    text = GRAPH.read_text()
    broken = text.replace("      - diffusion/config.py\n", "")
    assert broken != text
    assert with_modules(broken) == text


def test_every_stage_is_its_one_command() -> None:
    for name, stage in yaml.safe_load(GRAPH.read_text())["stages"].items():
        assert stage["cmd"] == f"diffctl stage {name}"


def test_every_out_is_ignored_by_hand() -> None:
    stages = yaml.safe_load(GRAPH.read_text())["stages"]
    outs = [out for stage in stages.values() for key in ("outs", "plots") for out in stage.get(key, [])]
    paths = [next(iter(out)) if isinstance(out, dict) else out for out in outs]
    paths = [path if Path(path).suffix else f"{path}/" for path in paths]
    command = ["git", "check-ignore", "--no-index", *paths]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert checked.stdout.split() == paths


@pytest.mark.parametrize(
    ("arguments", "light"),
    [
        (["--help"], {"pydantic", "yaml", "rich"}),
        (["stage", "--help"], set()),  # typer itself loads pydantic for a command's options
        (["run", "--help"], set()),
    ],
)
def test_help_loads_nothing_heavy(arguments: list[str], light: set[str]) -> None:
    script = (
        "import sys\n"
        "from cli.main import main\n"
        f"sys.argv = ['diffctl', *{arguments!r}]\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "print(*sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    heavy = {"torch", "numpy", "mlflow", "prefect", "dvc", "matplotlib", *light}
    assert not heavy & set(done.stderr.split())
    assert "Usage:" in done.stdout
