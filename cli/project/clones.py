"""A clone of diffctl that was used as a project: edits of the library, and what a new project takes over."""

import os
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import yaml

from diffusion.layout import GRAPH, LOCK, PARAMS, RUNS
from diffusion.project import PACKAGES
from diffusion.system.errors import DiffctlError, UsageError, printable
from diffusion.system.files import copy_file
from diffusion.system.processes import PYTHON_MODULE
from diffusion.system.registry import PLUGINS
from tracking.store import ARTIFACTS, DATABASE

COPIED = (LOCK, Path("metrics"), Path("start"), Path(".dvc/config"), Path(PLUGINS))
UNFINISHED = RUNS / "from-clone"  # names the clone, until the project is complete
LINKED = (Path(ARTIFACTS), Path(".dvc/cache"))  # their files never change


def check_clone(clone: Path) -> None:
    """Raise UsageError if a folder is no clone of diffctl with settings."""
    for name in (PARAMS, GRAPH, Path("diffusion/__init__.py")):
        if not (clone / name).is_file():
            raise UsageError(f"--from-clone {printable(clone)}: there is no {name}: name a clone of diffctl")


def edited_library_files(clone: Path) -> list[str]:
    """Return the files of the library that are new or edited since the last commit of a remote branch.

    That branch is the remote's default one, since a branch of the user's own may be pushed with its edits.
    """
    refs = _git(clone, "for-each-ref", "--format=%(refname)", "refs/remotes").splitlines()
    refs.sort(key=lambda ref: (not ref.endswith("/HEAD"), ref != "refs/remotes/origin/HEAD"))
    bases = (_git(clone, "merge-base", "HEAD", ref) for ref in refs)
    base = next((base for base in bases if base), "HEAD")
    edited = _git(clone, "diff", "--name-only", base, "--", *PACKAGES)
    new = _git(clone, "ls-files", "--others", "--exclude-standard", "--", *PACKAGES)
    return [*edited.splitlines(), *new.splitlines()]


def take_over(clone: Path, root: Path) -> list[str]:
    """Copy what belongs to the user into a new project: settings, plugins, results, models and runs.

    Return what was taken. Files that DVC and MLflow store by content are linked where the disk allows it.
    UsageError if a file is there already, except from an interrupted try with the same clone.
    """
    unfinished = root / UNFINISHED
    if not unfinished.is_file() or unfinished.read_text(encoding="utf-8") != str(clone.resolve()):
        paths = (PARAMS, *COPIED, *LINKED, Path(DATABASE))
        if there := [str(path) for path in paths if (root / path).exists()]:
            message = f"{printable(root)} has {', '.join(there)}, which --from-clone would replace"
            raise UsageError(f"{message}: name a new folder")
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    unfinished.write_text(str(clone.resolve()), encoding="utf-8")
    taken = []
    for path in (PARAMS, *COPIED, *LINKED):
        source, target = clone / path, root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            copy, ignored = _link if path in LINKED else shutil.copy2, shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, target, copy_function=copy, ignore=ignored, dirs_exist_ok=True)
        elif source.is_file():
            shutil.copy2(source, target)
        taken += [str(path)] * source.exists()
    if (clone / DATABASE).is_file():
        with (
            closing(sqlite3.connect(clone / DATABASE)) as old,
            closing(sqlite3.connect(root / DATABASE)) as new,
        ):
            old.backup(new)
        taken.append(DATABASE)
    return taken


def restore_outputs(root: Path) -> list[str]:
    """Restore data, models and samples from DVC's cache; return the outputs of dvc.lock that it lacks."""
    command = [*PYTHON_MODULE, "dvc", "checkout", "--quiet", "--allow-missing"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DiffctlError(
            f"`dvc checkout` failed in {printable(root)}: {' '.join(done.stderr.split())[:300]}"
        )
    lock = root / LOCK
    stages = yaml.safe_load(lock.read_text(encoding="utf-8"))["stages"] if lock.is_file() else {}
    outs = (out["path"] for stage in stages.values() for out in stage.get("outs", []))
    return [path for path in outs if not (root / path).exists()]


def _link(source: str, target: str) -> None:
    """Link a file, or copy it where the file system does not link; keep that of an earlier try."""
    if os.path.exists(target):
        return
    try:
        os.link(source, target)
    except OSError:
        copy_file(Path(source), Path(target))
        shutil.copystat(source, target)


def _git(clone: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=clone, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
