"""The folder of a project: whether Git and DVC can work in it, and whether a folder is inside one."""

import re
from pathlib import Path
from typing import Any

from diffusion.system.errors import UsageError

PARAMS, GRAPH, LOCK = "params.yaml", "dvc.yaml", "dvc.lock"
CONFLICT = re.compile(r"^(<{7} |={7}$|>{7} )", re.MULTILINE)


def repository_problem(root: Path = Path()) -> tuple[str, str] | None:
    """Return what keeps DVC from running the stages of a project, and the remedy; None for other folders."""
    if not (root / GRAPH).is_file():
        return None
    for name in (GRAPH, LOCK):
        file = root / name
        text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
        if found := CONFLICT.search(text):
            line = text.count("\n", 0, found.start()) + 1
            return (
                f"{name} has conflict markers from line {line} on",
                f"resolve them, such as by `git checkout --ours {name}`: the next run updates dvc.lock",
            )
    config = root / ".dvc/config"
    if not config.is_file():
        return (
            "DVC is not set up here (no .dvc/config)",
            "`dvc init`, or restore .dvc with `git checkout .dvc`",
        )
    has_git = any((folder / ".git").exists() for folder in (root.resolve(), *root.resolve().parents))
    if not has_git and "no_scm" not in config.read_text(encoding="utf-8"):
        return "this is no Git repository, which DVC needs", "`git init`"
    return None


def dvc_stages(root: Path = Path()) -> dict[str, dict[str, Any]]:
    """Return the stages of dvc.yaml by name; empty without the file, or if it is invalid."""
    import yaml  # every command imports this module

    try:
        stages = yaml.safe_load((root / GRAPH).read_text(encoding="utf-8"))["stages"]
        return {name: dict(stage) for name, stage in stages.items()}
    except (OSError, yaml.YAMLError, LookupError, TypeError, ValueError, AttributeError):
        return {}


def refuse_subfolder() -> None:
    """Raise UsageError if the working directory is inside a project and not its root."""
    here = Path.cwd()
    if (here / PARAMS).exists():
        return
    for folder in here.parents:
        if (folder / PARAMS).is_file() and (folder / GRAPH).is_file():
            raise UsageError(f"this is a folder of the project {folder}: run this there (`cd {folder}`)")
