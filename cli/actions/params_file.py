"""The file params.yaml as a copy of a profile."""

import subprocess
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
    if options.profile is not None:
        source = find_profile(options.profile)
        load(source)
        text = source.read_bytes()
        if not options.force and _has_unsaved_edits(text):
            raise UsageError(f"{PARAMS} has edits without a commit: copy it to {PROFILES}/, or give --force")
        write_atomic(PARAMS, lambda file: file.write(text))
        typer.echo(f"{PARAMS} is now {source}; `diffctl run` trains it")
    if options.protocol is None and options.init_from is None:
        return
    begin("loading the model or the protocol")
    from cli.actions.params_edits import use_pretrained, use_protocol  # torch is not needed for a profile

    if options.protocol is not None:
        use_protocol(options.protocol)
    if options.init_from is not None:
        use_pretrained(options.init_from)


def find_profile(profile: str) -> Path:
    """Return the file of the profile; UsageError lists the profiles."""
    for path in (PROFILES / f"{profile}.yaml", Path(profile)):
        if path.is_file():
            return path
    names = ", ".join(profile_names()) or "none"
    raise UsageError(f"no profile {brief(profile, str)} in {PROFILES}/ and no such file; there are: {names}")


def _has_unsaved_edits(wanted: bytes) -> bool:
    """Return whether overwriting params.yaml would lose text that no profile and no commit contains."""
    if not PARAMS.exists():
        return False
    text = read_regular(PARAMS, MAX_BYTES)
    if text in (wanted, *(path.read_bytes() for path in PROFILES.glob("*.yaml"))):
        return False
    try:
        committed = subprocess.run(["git", "show", f"HEAD:./{PARAMS}"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):  # without Git, a commit or the file
        return True
    return text != committed.stdout
