"""Rules of the code structure: import directions, dependencies of stages, modules that `--help` loads."""

import ast
import re
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import yaml

from diffusion.code_digest import imported_modules, module_file
from diffusion.process.process_registry import ProcessConfig
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.network_files import NetworkArtefacts
from diffusion.sample.sampling_card import sampling_code
from diffusion.train.plan import DenoiserPlan, training_code
from flows.stage_code import STAGES, read_stage_code
from tests.conftest import ROOT, run_python
from tests.helpers.networks import artefact_of, spec_of

MAY_USE = {
    "diffctl": {"diffctl", "cli", "diffusion"},
    "diffusion": {"diffusion"},
    "plugins": {"plugins", "diffusion"},
    "tracking": {"tracking", "diffusion"},
    "flows": {"flows", "tracking", "diffusion"},
    "serving": {"serving", "tracking", "diffusion"},
    "cli": {"cli", "flows", "serving", "tracking", "diffusion", "diffctl"},
}
LIBRARY, GRAPH = "diffusion", ROOT / "dvc.yaml"
WEB = {"fastapi", "starlette", "uvicorn", "prometheus_client"}
SERVICES = {"prefect", "dvc", "mlflow", "typer", "ray", *WEB}
MAY_SERVE = {
    "diffctl": set(),
    "diffusion": set(),
    "plugins": set(),
    "tracking": {"mlflow", "fastapi"},
    "flows": {"prefect", "dvc", "ray", "uvicorn"},
    "serving": {"ray", *WEB},
    "cli": {"typer"},
}
FILES = sorted(file for package in MAY_USE for file in (ROOT / package).rglob("*.py"))


@cache
def parse(file: Path) -> ast.Module:
    """Return the file's syntax tree."""
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def package(file: Path) -> str:
    return file.relative_to(ROOT).parts[0]


def test_packages_import_only_allowed_packages() -> None:
    wrong = []
    for file in FILES:
        roots = {name.split(".")[0] for name in imported_modules(parse(file))}
        forbidden = (roots & set(MAY_USE)) - MAY_USE[package(file)]
        forbidden |= (roots & SERVICES) - MAY_SERVE[package(file)]
        wrong += [f"{file.relative_to(ROOT)} imports {name}" for name in sorted(forbidden)]
    assert not wrong


def test_imports_have_no_cycle() -> None:
    graph = {file: set(loaded(file)) - {file} for file in FILES}
    order = list(TopologicalSorter(graph).static_order())  # CycleError names the cycle
    assert set(FILES) <= set(order)


def loaded(file: Path) -> Iterator[Path]:
    """Yield the project's files that importing this one loads: its imports outside functions."""
    for node in parse(file).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = list(imported_modules(ast.Module(body=[node], type_ignores=[])))
            found = [module_file(name) for name in names if name.split(".")[0] in MAY_USE]
            # `from package import module` loads the module; the package is its parent, not a cycle.
            yield from (path for path in found if path and not (path.name == "__init__.py" and found[1:]))


def test_child_processes_do_not_import_from_the_working_directory() -> None:
    """A project may have modules that are named like our packages."""
    unsafe = re.compile(r'(?<!"-P", )"-m"')
    assert not [file for file in FILES if unsafe.search(file.read_text(encoding="utf-8"))]


def test_code_of_a_stage_contains_what_computes_its_result(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with read_stage_code() as code:
        modules = {stage: code.modules(stage).keys() for stage in STAGES}
        digests = {stage: code.digest(stage) for stage in STAGES}
    assert yaml.safe_load((ROOT / "code.yaml").read_text()) == digests, "run `make format`"
    assert not any("diffusion.version" in names for names in modules.values()), (
        "a version makes nothing stale"
    )
    training = training_code(DenoiserPlan, ProcessConfig(), spec_of())
    assert modules["train"] >= {name for name in training if " " not in name}  # without entries
    report = {name.split(".")[1] for name in modules["report"]}
    assert {"report", "choice", "protocol"} <= report
    assert not {"sample", "analysis"} & report
    sampling = sampling_code(SampleSettings(), NetworkArtefacts(artefact_of(spec_of())))
    assert modules["sample"] >= {name for name in sampling if " " not in name}


def test_stages_run_one_command_and_depend_on_their_code() -> None:
    stages = yaml.safe_load(GRAPH.read_text())["stages"]
    assert list(stages) == ["code", *STAGES]
    assert all(stage["cmd"] == f"diffctl stage {name}" for name, stage in stages.items())
    assert all({"code.yaml": [name]} in stages[name]["params"] for name in STAGES)


def test_every_output_is_in_gitignore() -> None:
    stages = yaml.safe_load(GRAPH.read_text())["stages"]
    outs = [out for stage in stages.values() for key in ("outs", "plots") for out in stage.get(key, [])]
    in_git = ("metrics/scores.json", "code.yaml")
    outs = [out for out in outs if out not in [{name: {"cache": False}} for name in in_git]]
    paths = [next(iter(out)) if isinstance(out, dict) else out for out in outs]
    paths = [path if Path(path).suffix else f"{path}/" for path in paths]
    command = ["git", "check-ignore", "--no-index", *paths]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert checked.stdout.split() == paths


@pytest.mark.parametrize(
    ("command", "light"),  # typer itself loads pydantic for a command's options
    [([], {"yaml", "rich"}), (["stage"], set()), (["stage", "train"], set()), (["run"], set())],
)
def test_help_loads_nothing_heavy(command: list[str], light: set[str], tmp_path: Path) -> None:
    own = {"PYTHONPATH": str(ROOT)}  # in a folder without plugins
    done = run_python(tmp_path, "-X", "importtime", "-m", "cli.entry", *command, "--help", env=own)
    assert done.returncode == 0, done.stderr
    names = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "typer" in names
    heavy = {"torch", "numpy", "mlflow", "prefect", "dvc", "matplotlib", "fastapi", *light}
    assert not heavy & names
    assert "Usage:" in done.stdout


# The packages of the library in layers, the lowest first. A package imports from lower layers, and from its
# own layer without cycles.
LAYERS = (
    {"system", "version"},
    {"images", "downloads", "code_digest", "layout", "project"},
    {"process"},
    {"model"},
    {"protocol"},
    {"data", "train", "sample", "evaluate", "choice", "papers"},
    {"analysis", "api", "config", "edit", "engine", "search", "trials"},
    {"report", "check", "interop", "show", "verdict"},
)
LAYER = {name: layer for layer, names in enumerate(LAYERS) for name in names}
MODULES = [file for file in FILES if package(file) == LIBRARY and file != ROOT / LIBRARY / "__init__.py"]
ACTIONS = [file for file in FILES if file.is_relative_to(ROOT / "cli/actions")]


def package_of(file: Path) -> str:
    """Return the package of the library, or the top-level module, that a file belongs to."""
    return file.relative_to(ROOT / LIBRARY).parts[0].removesuffix(".py")


def folder_of(file: Path) -> str:
    """Return the folder of a file, or the file itself if the folder has subfolders."""
    has_folders = any(entry.is_dir() and entry.name != "__pycache__" for entry in file.parent.iterdir())
    return str((file if has_folders else file.parent).relative_to(ROOT))


def used(file: Path) -> set[Path]:
    """Return the modules of its top-level package that a file imports anywhere, without their packages."""
    names = (name for name in imported_modules(parse(file)) if name.split(".")[0] == package(file))
    found = map(module_file, names)
    return {module for module in found if module and module != file and module.name != "__init__.py"}


def test_every_package_has_a_layer() -> None:
    assert {package_of(file) for file in MODULES} == set(LAYER)


def test_no_package_imports_from_a_higher_layer() -> None:
    wrong = [
        f"{file.relative_to(ROOT)} imports {module.relative_to(ROOT)}"
        for file in MODULES
        for module in sorted(used(file))
        if LAYER[package_of(module)] > LAYER[package_of(file)]
    ]
    assert not wrong


@pytest.mark.parametrize(
    ("files", "unit"), [(MODULES, package_of), (MODULES, folder_of), (ACTIONS, folder_of)]
)
def test_no_two_packages_import_each_other(files: list[Path], unit: Callable[[Path], str]) -> None:
    graph: dict[str, set[str]] = {}
    for file in files:
        graph.setdefault(unit(file), set()).update({unit(module) for module in used(file)} - {unit(file)})
    list(TopologicalSorter(graph).static_order())  # CycleError names the cycle
