"""Refuse a project that contains another copy of the library than the imported one."""

import ast
from pathlib import Path

from diffusion.system.errors import UsageError

ROOT = Path(__file__).parents[1]
PACKAGES = ("diffusion", "tracking", "flows", "serving", "cli")


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
