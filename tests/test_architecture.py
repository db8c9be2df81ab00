"""The house rules: which way imports point, what a stage depends on, what help loads."""

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import yaml

from diffusion.code import module_file
from diffusion.system.syntax import imported
from tests.closure import GRAPH, LIBRARY, ROOT, idle, listed_code, parse, stage_files, uncovered

MAY_USE = {
    "diffusion": {"diffusion"},
    "tracking": {"tracking", "diffusion"},
    "flows": {"flows", "tracking", "diffusion"},
    "serving": {"serving", "tracking", "diffusion"},
    "cli": {"cli", "flows", "serving", "tracking", "diffusion"},
}
WEB = {"fastapi", "starlette", "uvicorn", "prometheus_client"}
SERVICES = {"prefect", "dvc", "mlflow", "typer", "ray", *WEB}
MAY_SERVE = {
    "diffusion": set(),
    "tracking": {"mlflow", "fastapi"},
    "flows": {"prefect", "dvc", "ray", "uvicorn"},
    "serving": {"ray", *WEB},
    "cli": {"typer"},
}
WALL_CLOCK = re.compile(r"\btime\.time(_ns)?\(|\bdatetime\.(now|utcnow)\(")
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
    listed, needed = listed_code(), stage_files()
    assert set(listed) == set(needed)
    for stage, files in needed.items():
        assert not uncovered(listed[stage], files), f"{stage}: list them, by folder, in dvc.yaml"
        assert not idle(listed[stage], files), f"{stage}: listed in dvc.yaml for nothing"


def test_the_graph_is_read_at_one_look() -> None:
    assert len(GRAPH.read_text().splitlines()) < 130


def test_every_stage_is_its_one_command() -> None:
    for name, stage in yaml.safe_load(GRAPH.read_text())["stages"].items():
        assert stage["cmd"] == f"diffctl stage {name}"


def test_every_out_is_ignored_by_hand() -> None:
    stages = yaml.safe_load(GRAPH.read_text())["stages"]
    outs = [out for stage in stages.values() for key in ("outs", "plots") for out in stage.get(key, [])]
    outs = [out for out in outs if out != {"metrics/scores.json": {"cache": False}}]  # which is Git's
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
    heavy = {"torch", "numpy", "mlflow", "prefect", "dvc", "matplotlib", "fastapi", *light}
    assert not heavy & set(done.stderr.split())
    assert "Usage:" in done.stdout


# Who asks what time it is, to write it down or to say how long ago something was.
MAY_SAY_WHEN = {
    "cli/shared/tables.py",
    "diffusion/downloads/transfer.py",
    "diffusion/train/run_folder.py",
    "flows/stranded.py",
    "flows/watched.py",
    "tracking/lookup.py",
    "tracking/moves.py",
    "tracking/spool.py",
}


def test_nothing_is_timed_by_a_clock_that_a_person_can_set() -> None:
    asked = {str(file.relative_to(ROOT)) for file in FILES if WALL_CLOCK.search(file.read_text())}
    assert asked == MAY_SAY_WHEN


# The library from the ground up. No arrow runs up; on one floor they run one way.
FLOORS = (
    {"system"},
    {"images", "downloads", "code", "layout"},
    {"process"},
    {"model"},
    {"protocol"},
    {"data", "train", "sample", "evaluate", "choice", "papers"},
    {"analysis", "config", "engine", "search"},
    {"report", "check", "interop", "show"},
)
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}
MODULES = sorted(file for file in (ROOT / LIBRARY).rglob("*.py") if file != ROOT / LIBRARY / "__init__.py")
DOMAIN = re.compile(
    r"\b(timesteps?|epsilon|denois\w*|samplers?|guidance|u-?net|noise[ds]?|fid)\b", re.IGNORECASE
)


def package_of(file: Path) -> str:
    """The package of the library, or the module beside the packages, that a file belongs to."""
    return file.relative_to(ROOT / LIBRARY).parts[0].removesuffix(".py")


def room_of(file: Path) -> str:
    """A folder without folders, for the files in it; else the file itself."""
    has_rooms = any(entry.is_dir() and entry.name != "__pycache__" for entry in file.parent.iterdir())
    return str((file if has_rooms else file.parent).relative_to(ROOT))


def used(file: Path) -> set[Path]:
    """The library's modules that a file imports, wherever in it, but for the packages that they lie in."""
    found = (module_file(name) for name in imported(parse(file)) if name.split(".")[0] == LIBRARY)
    return {module for module in found if module and module != file and module.name != "__init__.py"}


def test_every_room_has_its_floor() -> None:
    assert {package_of(file) for file in MODULES} == set(LEVEL)


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_arrow_runs_up(file: Path) -> None:
    above = {module for module in used(file) if LEVEL[package_of(module)] > LEVEL[package_of(file)]}
    assert not above, f"{package_of(file)} stands below {sorted(map(package_of, above))}"


@pytest.mark.parametrize("room", [package_of, room_of])
def test_no_two_rooms_use_each_other(room: Callable[[Path], str]) -> None:
    graph: dict[str, set[str]] = {}
    for file in MODULES:
        graph.setdefault(room(file), set()).update({room(module) for module in used(file)} - {room(file)})
    list(TopologicalSorter(graph).static_order())  # CycleError names the circle


def test_the_ground_knows_no_word_of_diffusion() -> None:
    for file in (ROOT / LIBRARY / "system").rglob("*.py"):
        assert not (word := DOMAIN.search(file.read_text())), f"{file.relative_to(ROOT)} says {word[0]!r}"


def test_tests_have_the_folders_of_the_code() -> None:
    code = {file.parent.name for file in (ROOT / LIBRARY).glob("*/__init__.py")} | set(MAY_USE) - {LIBRARY}
    folders = {file.parent.name for file in (ROOT / "tests").glob("*/__init__.py")}
    assert folders == code | {"benchmarks", "docs", "fuzz", "gpu", "helpers"}
