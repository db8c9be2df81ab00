"""The whole project in a folder of its own, with a small experiment on true digits."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

from tests.conftest import ROOT, write_params

COPIED = (
    "cli", "diffusion", "flows", "plugins", "serving", "tracking", "profiles", "deploy", "diffctl",
    "dvc.yaml", "code.yaml", "prefect.yaml", ".diffctl", ".dvc", ".gitignore",
)  # fmt: skip


def small_project(folder: Path, **changes: dict[str, Any]) -> Path:
    """Copy the project into `folder` and commit it there; `changes` go into params.yaml by section."""
    folder.mkdir(parents=True, exist_ok=True)
    unwanted = shutil.ignore_patterns("__pycache__", "tmp", "cache", "config.local", "docs")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=unwanted, symlinks=True, dirs_exist_ok=True)
        else:
            shutil.copy(source, folder / name)
    write_params(folder, **changes)
    git(folder, "init", "--quiet", "--initial-branch", "main")
    commit(folder, "begin")
    return folder


def git(folder: Path, *arguments: str) -> str:
    """Run git in the folder; its output."""
    author = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    command = ["git", *author, *arguments]
    return subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout


def commit(folder: Path, message: str) -> None:
    """Commit everything that is not ignored."""
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", message)


def own_code(folder: Path) -> dict[str, str]:
    """The environment in which the folder's own code runs, whatever is installed, with its own stores."""
    return {"PYTHONPATH": str(folder), "PREFECT_API_URL": "", "MLFLOW_TRACKING_URI": ""}
