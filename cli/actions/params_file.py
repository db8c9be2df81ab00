"""The file params.yaml: profiles, and edits in place."""

import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer

from cli.commands.pipeline import Use
from cli.shared.command import begin
from cli.shared.options import PROFILES, profile_names
from diffusion.config import load
from diffusion.layout import PARAMS
from diffusion.system.errors import UsageError
from diffusion.system.files import write_atomic
from diffusion.system.params import MAX_BYTES
from diffusion.system.regular_files import read_regular
from diffusion.system.section import brief
from diffusion.system.yaml_text import YamlRefusal, edit_yaml


def use(options: Use) -> None:
    """Carry out `diffctl use`."""
    if options.profile is not None:
        use_profile(options.profile, options.force)
    if options.protocol is not None:
        begin("loading the protocol")
        from cli.actions.params_edits import use_protocol

        use_protocol(options.protocol)
    if options.init_from is not None:
        begin("looking for the model")
        from cli.actions.params_edits import use_pretrained

        use_pretrained(options.init_from)


def use_profile(profile: str, force: bool) -> None:
    """Copy a profile to params.yaml; UsageError if edits would be lost and `force` is not set."""
    source = find_profile(profile)
    load(source)
    text = source.read_bytes()
    if not force and _has_unsaved_edits(PARAMS, text):
        raise UsageError(
            f"{PARAMS} has edits that are neither committed nor in {PROFILES}/: "
            f"keep it (`cp {PARAMS} {PROFILES}/NAME.yaml`), or overwrite it with --force"
        )
    write_atomic(PARAMS, lambda file: file.write(text))
    typer.echo(f"{PARAMS} is now {source}; `diffctl run` trains it")


def find_profile(profile: str) -> Path:
    """Return the file of the profile; UsageError lists the profiles."""
    named = PROFILES / f"{profile}.yaml"
    for path in (named, Path(profile)):
        with suppress(OSError, ValueError):  # invalid as a path
            if path.is_file():
                return path
    names = ", ".join(profile_names()) or "none"
    raise UsageError(f"no profile {brief(profile, str)} in {PROFILES}/ and no such file; there are: {names}")


def _has_unsaved_edits(params: Path, wanted: bytes) -> bool:
    """Return whether overwriting `params` would lose text that is stored nowhere else."""
    if not params.exists():
        return False
    try:
        text = read_regular(params, MAX_BYTES)
    except OSError as error:
        raise UsageError(f"{params} cannot be replaced ({error.strerror}): move it away") from None
    kept = [wanted, *(path.read_bytes() for path in PROFILES.glob("*.yaml"))]
    return text not in kept and text != _committed(params)


def _committed(path: Path) -> bytes | None:
    """Return the file's text in Git's HEAD; None without Git, a commit or the file."""
    try:
        shown = subprocess.run(["git", "show", f"HEAD:./{path}"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return shown.stdout


def replace_values(values: Mapping[tuple[str, ...], Any]) -> str:
    """Return the text of params.yaml with these values; UsageError if one cannot be replaced."""
    text = PARAMS.read_text(encoding="utf-8")
    for path, value in values.items():
        try:
            text = edit_yaml(text, path, value)
        except YamlRefusal as refusal:
            raise UsageError(f"{PARAMS}: {refusal}") from None
    return text
