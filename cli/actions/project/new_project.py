"""`diffctl init`: a folder becomes a project, with the files that the user owns."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import typer

from cli.commands.project import Init
from cli.project import clones
from cli.project.generated_files import (
    PYPROJECT,
    SKY,
    WORKFLOW,
    ProjectChoices,
    base_files,
    generated_files,
    is_from_file,
    with_own_params,
)
from cli.shared.options import profile_names
from diffusion.config import load
from diffusion.data.sources import fashion_mnist
from diffusion.layout import MARK, PARAMS, PROFILES, check_raw_folder
from diffusion.system.errors import DiffctlError, UsageError, printable
from diffusion.system.processes import PYTHON_MODULE
from diffusion.system.section import brief
from diffusion.version import VERSION

DVC_CONFIG = """\
[core]
    analytics = false
    autostage = false
    check_update = false
"""
QUESTION, DEFAULT = "Pictures: a folder, or the name of a data set", "digits"


def init(options: Init) -> None:
    root = options.folder.resolve()
    repository = _check_place(root, options)
    choices = ProjectChoices(name=root.name, github_actions=options.github_actions, sky=options.sky)
    if options.from_clone is not None:
        choices, is_checked = _take_over(options.from_clone, root, choices, options.ignore_edits), True
    else:
        choices, is_checked = _choose(options, root, choices)
    root.mkdir(parents=True, exist_ok=True)
    made, kept = _write(root, choices, repository)
    parts = (path.partition("/") for path in made)
    shown = dict.fromkeys(f"{top}{slash}" for top, slash, _ in parts)
    typer.echo(f"made in {printable(root)}: {', '.join(shown)}")
    if options.from_clone is not None:
        if missing := clones.restore_outputs(root):
            typer.echo(f"not in DVC's cache: {', '.join(missing)}; `diffctl run` makes them again")
        _run(["git", "add", "--all", "."], root)
        (root / clones.UNFINISHED).unlink(missing_ok=True)
    elif kept:
        typer.echo(f"kept, since they exist: {', '.join(kept)}; .diffctl/base has what diffctl would write")
    if is_from_file() and (named := [path for path in (PYPROJECT, WORKFLOW, SKY) if path in made]):
        typer.echo(
            f"diffctl was installed from a file: before you push, name its Git commit in {', '.join(named)} "
            f"in place of =={VERSION} (`diffctl docs operations`)"
        )
    if is_checked:
        typer.echo("\n`diffctl check`:")
        subprocess.run([*PYTHON_MODULE, "cli.entry", "check"], cwd=root, check=False)
    folder = [] if root == Path.cwd() else [f"cd {printable(options.folder)}"]
    steps = [*folder, "git commit --message 'Begin'", *["diffctl check"] * (not folder), "diffctl run"]
    typer.echo("next:\n" + "\n".join(f"    {step}" for step in steps))


def _choose(options: Init, root: Path, choices: ProjectChoices) -> tuple[ProjectChoices, bool]:
    """Return the choices for the profile or the pictures of the options, and whether they are pictures."""
    profile, data = _source(options)
    if profile is not None:
        return choices.model_copy(update={"profile": profile}), False
    check_raw_folder(data, root, "--data")
    if any((data / remote.name).is_file() for remote in fashion_mnist.FILES):
        message = f"--data {printable(data)} has IDX files and no pictures: for those of Fashion-MNIST"
        raise UsageError(f"{message} give --data {fashion_mnist.NAME}, and set data.path to their folder")
    from cli.project.folder_settings import choose_settings  # torch

    typer.echo(f"looking at the pictures in {printable(data)} and timing a few training steps")
    choices, reasons = choose_settings(data.resolve(), _path_from(root, data), choices)
    typer.echo("\n".join(reasons))
    return choices, True


def _take_over(clone: Path, root: Path, choices: ProjectChoices, ignore_edits: bool) -> ProjectChoices:
    """Copy the user's work from a clone; UsageError if the clone has edits of the library."""
    clones.check_clone(clone)
    if (edited := clones.edited_library_files(clone)) and not ignore_edits:
        raise UsageError(
            f"{printable(clone)} has edits of the library ({', '.join(edited)}), and a project has none: "
            "move them to plugins/ (`diffctl docs extending`), or leave them behind by --ignore-edits"
        )
    typer.echo(f"taken from {printable(clone)}: {', '.join(clones.take_over(clone, root))}")
    return with_own_params(choices, root / PARAMS)


def _check_place(root: Path, options: Init) -> Path | None:
    """Return the Git repository that contains `root`, None without one; UsageError if it does not suit."""
    if (root / MARK).exists():
        raise UsageError(f"{printable(root)} is a project of diffctl already: `diffctl run` runs it")
    if root.exists() and not root.is_dir():
        raise UsageError(f"{printable(root)} is a file: name a folder")
    inside = next(one for one in (root, *root.parents) if one.is_dir())
    found = _run(["git", "rev-parse", "--show-toplevel"], inside, fails=True)
    repository = Path(found).resolve() if found else None
    if options.subdir and repository in (None, root):
        raise UsageError(f"--subdir: {printable(root)} is no folder inside a Git repository: leave it out")
    if repository not in (None, root) and not options.subdir:
        message = f"{printable(root)} is inside the Git repository {printable(repository)}"
        raise UsageError(f"{message}: give --subdir for a project inside it, or name another folder")
    if options.subdir and options.github_actions:
        raise UsageError(
            "--github-actions and --subdir exclude each other: GitHub reads workflows at the root"
        )
    return repository


def _source(options: Init) -> tuple[str | None, Path]:
    """Return the profile of the options or the user's answer, or None and a folder of pictures."""
    data = options.data
    if options.profile is not None or (data is None and options.defaults):
        return _known(options.profile or DEFAULT), Path()
    if data is None:
        if not sys.stdin.isatty():
            raise UsageError("give --data FOLDER, --profile NAME, or --defaults for handwritten digits")
        data = Path(typer.prompt(QUESTION, default=DEFAULT)).expanduser()
    return (None, data) if data.is_dir() else (_profile_of(data), data)


def _profile_of(data: Path) -> str:
    """Return the first profile of a data set; UsageError if there is none."""
    names = {load(PROFILES / f"{name}.yaml").data.name: name for name in reversed(profile_names())}
    names |= {name: name for name in profile_names()}
    if data.name not in names:
        sets = ", ".join(name for name in names if not name.startswith("image-folder"))
        raise UsageError(f"--data {printable(data)} is no folder and no data set with a profile: {sets}")
    return names[data.name]


def _known(profile: str) -> str:
    if profile not in profile_names():
        raise UsageError(f"--profile {brief(profile, str)}: the profiles are {', '.join(profile_names())}")
    return profile


def _path_from(root: Path, data: Path) -> str:
    """Return the folder of pictures as params.yaml names it: relative to the project if it is inside."""
    path = data.resolve()
    return str(path.relative_to(root) if path.is_relative_to(root) else path)


def _write(root: Path, choices: ProjectChoices, repository: Path | None) -> tuple[list[str], list[str]]:
    """Write the files that do not exist yet, set up Git and DVC; return the new files and the kept ones."""
    if repository is None:
        _run(["git", "init", "--quiet"], root)
    files = generated_files(choices)
    kept = [path for path in files if (root / path).exists() or (root / path).is_symlink()]
    files = generated_files(choices.model_copy(update={"kept": kept}))
    if not (root / ".dvc").is_dir():
        subdir = ["--subdir"] * (repository not in (None, root))
        _run([*PYTHON_MODULE, "dvc", "init", "--quiet", *subdir], root)
        (root / ".dvc/config").write_text(DVC_CONFIG, encoding="utf-8")
    made = [path for path in files if path not in kept]
    for path, text in (files | base_files(files)).items():
        if path not in kept:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text, encoding="utf-8")
    _run([*PYTHON_MODULE, "cli.entry", "stage", "code"], root)
    made.insert(1, "code.yaml")
    _run([*PYTHON_MODULE, "cli.entry", "schema", "--out", "params.schema.json"], root)
    _run(["git", "add", "--force", "--", *made, *base_files(files), ".dvc/config"], root)
    return made, kept


def _run(command: Sequence[str], folder: Path, *, fails: bool = False) -> str:
    """Run a command in a folder and return its output; empty if it fails and may, else DiffctlError."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UsageError(f"{command[0]} is not installed, and a project needs it: install it") from None
    if done.returncode and not fails:
        name = " ".join(command[:5]).replace(sys.executable, "python")
        raise DiffctlError(f"`{name}` failed in {printable(folder)}: {brief(done.stderr, str)}")
    return "" if done.returncode else done.stdout.strip()
