"""`diffctl upgrade`: bring the files of a project to the installed version."""

import subprocess
from pathlib import Path

import typer

from cli.commands.project import Upgrade
from cli.project.generated_files import (
    BASE,
    ProjectChoices,
    base_files,
    generated_files,
    read_choices,
    with_own_params,
)
from cli.project.upgrade_plan import FileChange, plan_upgrade
from diffusion.layout import GRAPH, MARK, PARAMS
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.files import write_text
from diffusion.version import VERSION
from flows.stage_code import write_stage_code


def upgrade(options: Upgrade) -> None:
    choices = _choices()
    files = generated_files(choices)
    originals = base_files(files)
    generated = {path: files[path] for path in files if f"{BASE}/{path}" in originals}
    changes = plan_upgrade(Path(), generated, choices.kept)
    if choices.version == VERSION and not changes:
        return typer.echo(f"the project is up to date with diffctl {VERSION}")
    if not options.dry_run:
        _refuse_uncommitted([change.path for change in changes if change.action != "kept"])
    for change in changes:
        typer.echo(f"{change.path}: {change.action} ({change.why})")
    if options.dry_run:
        return typer.echo(f"nothing was written: `diffctl upgrade` upgrades {choices.version} to {VERSION}")
    _write(changes)
    _record(originals | {path: text for path, text in files.items() if path.startswith(f"{MARK.parent}/")})
    conflicts = [change.path for change in changes if change.action == "conflicts"]
    if conflicts:
        raise DiffctlError(
            f"resolve the conflicts that are marked in {', '.join(conflicts)}, then `dvc repro code`"
        )
    typer.echo(
        f"the project is of diffctl {VERSION}: `git diff` shows the changes, `diffctl check` what runs again"
    )


def _choices() -> ProjectChoices:
    """Return what the project was made from; UsageError if it cannot be upgraded."""
    if Path("diffusion/code_digest.py").is_file():
        raise UsageError("this is a clone of diffctl: `git pull` upgrades it")
    if not GRAPH.is_file():
        raise UsageError("this is no project of diffctl: `diffctl init` makes one")
    try:
        return read_choices(Path())
    except FileNotFoundError:
        return with_own_params(ProjectChoices(version="an earlier version", name=Path.cwd().name), PARAMS)


def _refuse_uncommitted(paths: list[str]) -> None:
    """Raise UsageError if a file that would change has edits without a commit."""
    command = ["git", "status", "--porcelain", "--", *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    edited = [line[3:] for line in done.stdout.splitlines()]
    if paths and edited:
        raise UsageError(f"an upgrade changes files with edits without a commit: commit {', '.join(edited)}")


def _write(changes: list[FileChange]) -> None:
    for change in changes:
        if change.text is not None:
            Path(change.path).parent.mkdir(parents=True, exist_ok=True)
            write_text(Path(change.path), change.text)
        elif change.action == "removed":
            Path(change.path).unlink()


def _record(files: dict[str, str]) -> None:
    """Write the originals and the mark of this version, and the digests of the code."""
    for file in Path(BASE).rglob("*"):
        if file.is_file() and str(file) not in files:
            file.unlink()
    for path, text in files.items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_text(Path(path), text)
    write_stage_code()
