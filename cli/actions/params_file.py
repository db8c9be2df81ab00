"""The file params.yaml as a copy of a profile."""

import subprocess
from contextlib import suppress
from pathlib import Path

import typer

from cli.commands.pipeline import Use
from cli.shared.command import begin
from cli.shared.options import PROFILES, profile_names
from diffusion.config import load
from diffusion.layout import PARAMS
from diffusion.system.errors import UsageError
from diffusion.system.files import read_regular, write_atomic
from diffusion.system.params import MAX_BYTES
from diffusion.system.section import brief


def use(options: Use) -> None:
    """Carry out `diffctl use`."""
    if options.profile is not None:
        _use_profile(options.profile, options.force)
    if options.protocol is None and options.init_from is None:
        return
    begin("loading the model or the protocol")
    from cli.actions.params_edits import use_pretrained, use_protocol  # torch is not needed for a profile

    if options.protocol is not None:
        use_protocol(options.protocol)
    if options.init_from is not None:
        use_pretrained(options.init_from)


def _use_profile(profile: str, force: bool) -> None:
    """Copy a profile to params.yaml; UsageError if edits would be lost and `force` is not set."""
    source = find_profile(profile)
    load(source)
    text = source.read_bytes()
    if not force and _has_unsaved_edits(PARAMS, text):
        raise UsageError(f"{PARAMS} has edits that no commit has: copy it to {PROFILES}/, or give --force")
    write_atomic(PARAMS, lambda file: file.write(text))
    typer.echo(f"{PARAMS} is now {source}; `diffctl run` trains it")


def find_profile(profile: str) -> Path:
    """Return the file of the profile; UsageError lists the profiles."""
    for path in (PROFILES / f"{profile}.yaml", Path(profile)):
        with suppress(OSError, ValueError):  # invalid as a path
            if path.is_file():
                return path
    names = ", ".join(profile_names()) or "none"
    raise UsageError(f"no profile {brief(profile, str)} in {PROFILES}/ and no such file; there are: {names}")


def _has_unsaved_edits(params: Path, wanted: bytes) -> bool:
    """Return whether overwriting `params` would lose text that no profile and no commit contains."""
    if not params.exists():
        return False
    try:
        text = read_regular(params, MAX_BYTES)
    except OSError as error:
        raise UsageError(f"{params} cannot be replaced ({error.strerror}): move it away") from None
    if text in (wanted, *(path.read_bytes() for path in PROFILES.glob("*.yaml"))):
        return False
    try:
        committed = subprocess.run(["git", "show", f"HEAD:./{params}"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):  # without Git, a commit or the file
        return True
    return text != committed.stdout
