"""`diffctl use`: params.yaml becomes a profile, and nobody's edits are lost."""

import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

PROFILES = Path("profiles")


def use(
    profile: Annotated[str, typer.Argument(help="A name in profiles/, or a file.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite unsaved edits.")] = False,
) -> None:
    """Make params.yaml that profile, comments included."""
    from diffusion.config import load
    from diffusion.layout import PARAMS
    from diffusion.system.errors import UsageError
    from diffusion.system.files import write_atomic

    source = _find(profile)
    load(source)
    text = source.read_bytes()
    if not force and _has_unsaved_edits(PARAMS, text):
        raise UsageError(
            f"{PARAMS} has edits that are neither committed nor in {PROFILES}/: "
            f"keep it (`cp {PARAMS} {PROFILES}/NAME.yaml`), or overwrite it with --force"
        )
    write_atomic(PARAMS, lambda file: file.write(text))
    typer.echo(f"{PARAMS} is now {source}; `diffctl run` makes it")


def _find(profile: str) -> Path:
    """The profile's file; UsageError lists the profiles there are."""
    from diffusion.system.errors import UsageError
    from diffusion.system.section import brief

    named = PROFILES / f"{profile}.yaml"
    for path in (named, Path(profile)):
        with suppress(OSError, ValueError):  # what no file can be called
            if path.is_file():
                return path
    names = ", ".join(sorted(path.stem for path in PROFILES.glob("*.yaml"))) or "none"
    raise UsageError(
        f"no profile {brief(profile, str)} in {PROFILES}/ and no such file; the profiles are: {names}"
    )


def _has_unsaved_edits(params: Path, wanted: bytes) -> bool:
    """Whether overwriting `params` would lose a text that stands nowhere else."""
    if not params.exists():
        return False
    text = params.read_bytes()
    kept = [wanted, *(path.read_bytes() for path in PROFILES.glob("*.yaml"))]
    return text not in kept and text != _committed(params)


def _committed(path: Path) -> bytes | None:
    """The file's text in Git's HEAD; None without Git, a commit or the file."""
    try:
        shown = subprocess.run(["git", "show", f"HEAD:./{path}"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return shown.stdout
