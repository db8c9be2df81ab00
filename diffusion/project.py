"""The project: its folder, found from the working directory upwards, its plugins, and a copy of our code.

A project's mark is .diffctl/project.yaml, which Git tracks. A project of an earlier version has none: it is
found by the stages in its dvc.yaml.
"""

import ast
import os
from pathlib import Path

from diffusion.layout import GRAPH, MARK
from diffusion.system.errors import UsageError, printable
from diffusion.system.registry import load_package, plugins_root
from diffusion.version import VERSION

OUR_STAGE = b"cmd: diffctl stage "
ROOT = Path(__file__).parents[1]
PACKAGES = ("diffusion", "tracking", "flows", "serving", "cli")


def find_project(start: Path) -> Path | None:
    """Return the nearest project at or above an absolute folder; None without one.

    A folder with a dvc.yaml ends the search: a copy by `dvc exp run --temp`, inside a project, is one itself.
    """
    for folder in (start, *start.parents):
        if (folder / MARK).is_file():
            return folder
        if (graph := folder / GRAPH).is_file():
            return folder if OUR_STAGE in graph.read_bytes() else None
    return None


def load_project(start: Path | str = ".") -> Path:
    """Find the project at or above a folder, load its plugins, and return its folder.

    UsageError without a project there, for a broken plugin, for a project with other code of diffctl than
    the imported code, and if this process has loaded the plugins of another project.
    """
    folder = Path(start).expanduser().resolve()
    root = find_project(folder)
    if root is None:
        raise UsageError(f"{printable(folder)} is in no project: give the folder of one, with {MARK} in it")
    loaded = plugins_root()
    if loaded not in (None, root):
        raise UsageError(f"the plugins of {loaded} are loaded: use another process for the project {root}")
    check_project_code(root)
    load_package(root)
    return root


def version_problem(root: Path) -> tuple[str, str] | None:
    """Return how the project's version of diffctl and the installed one differ, and the remedy; else None.

    A clone of diffctl has the code of its own version, and other folders have none. UsageError for a damaged
    mark.
    """
    if (root / "diffusion/version.py").is_file() or find_project(root) != root:
        return None
    if not (root / MARK).is_file():
        return f"the project has no {MARK}", "`diffctl upgrade` writes it"
    from diffusion.system.params import read_mapping  # every command imports this module

    version = read_mapping(root / MARK).get("version")
    if version == VERSION:
        return None
    how = f"`diffctl upgrade`, or install diffctl {version}"
    return f"the project is of diffctl {version}, and {VERSION} is installed", how


def enter_project() -> Path:
    """Load the project at or above the working directory, if any, and change into it.

    Return the earlier working directory, which paths of the command line are relative to.
    """
    try:
        here = Path.cwd()
    except FileNotFoundError:
        raise UsageError("the working directory was removed: change into another one") from None
    if find_project(here) is not None:
        os.chdir(load_project(here))
    return here


def load_worker_project() -> None:
    """Load the project at or above the working directory, if any, when a worker process of Ray starts."""
    if find_project(Path.cwd()) is not None:
        load_project()


def check_project_code(root: Path) -> None:
    """Raise UsageError if the project in `root` contains other code of diffctl than the imported code.

    A copy with equal code is accepted, such as that of `dvc exp run --temp`. A registered model runs in any
    project, since its code is in an archive.
    """
    own, imported = (folder / "diffusion/code_digest.py" for folder in (root, ROOT))
    is_project = (root / "params.yaml").is_file() and own.is_file()
    if not is_project or not imported.is_file() or own.samefile(imported):
        return
    for file in (file for package in PACKAGES for file in sorted((root / package).rglob("*.py"))):
        name = file.relative_to(root)
        if not (ROOT / name).is_file() or _differs(file, ROOT / name):
            raise UsageError(
                f"{file.absolute()} is not the code that runs, {ROOT / name}: activate this project's own "
                "environment (`make install` creates .venv)"
            )


def _differs(one: Path, other: Path) -> bool:
    if one.read_bytes() == other.read_bytes():
        return False
    from diffusion.code_digest import normalized_syntax  # it is slow to import

    trees = [normalized_syntax(ast.parse(file.read_bytes())) for file in (one, other)]
    return trees[0] != trees[1]
