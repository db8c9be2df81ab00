"""The file params.yaml: copied from a profile, and edited in place."""

import json
import subprocess
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import typer

from cli.commands.pipeline import Set, Use
from cli.project.generated_files import record_profile
from cli.shared.command import begin
from cli.shared.options import profile_names
from diffusion.config import load, parse
from diffusion.layout import PARAMS, PROFILES
from diffusion.system.errors import UsageError, printable
from diffusion.system.files import read_regular, write_text
from diffusion.system.params import MAX_BYTES, YamlRefusal, edit_yaml, parse_yaml, read_params
from diffusion.system.section import brief

UNSET = object()  # the value of a key that params.yaml does not have


def use(options: Use) -> None:
    text, lines = (_own_text() if options.profile is None else _profile_text(options)), list[str]()
    if options.profile is not None:
        lines.append(f"{PARAMS} is now the profile {options.profile}; `diffctl run` trains it")
    if options.protocol is not None or options.init_from is not None:
        begin("loading the model or the protocol")
        from cli.actions.project import params_edits  # torch

    if options.protocol is not None:
        text, further = params_edits.with_protocol(text, options.protocol)
        lines += further
    if options.init_from is not None:
        text, further = params_edits.with_pretrained(text, options.init_from)
        lines += further
    write_text(PARAMS, text)  # nothing was refused
    if options.profile is not None:
        record_profile(options.profile)
    typer.echo("\n".join(lines))


def _own_text() -> str:
    """Return the text of params.yaml; UsageError if it is missing or no YAML."""
    read_params()
    return PARAMS.read_text(encoding="utf-8")


def _profile_text(options: Use) -> str:
    """Return the text of the profile; UsageError if params.yaml has edits that would be lost."""
    assert options.profile is not None, "it is given"
    source = find_profile(options.profile)
    load(source)
    text = source.read_bytes()
    if not options.force and _has_unsaved_edits(text):
        raise UsageError(f"{PARAMS} has edits without a commit: commit them, or give --force")
    return text.decode()


def set_values(options: Set) -> None:
    values = parse_assignments(options.assignments, "set")
    before = read_params()
    text = replace_values(_own_text(), {tuple(key.split(".")): value for key, value in values.items()})
    parse(parse_yaml(text), f"{PARAMS} with these values")  # validated before the file is written
    write_text(PARAMS, text)
    for key, value in values.items():
        old: Any = before
        for part in key.split("."):
            old = old.get(part, UNSET) if isinstance(old, dict) else UNSET
        typer.echo(f"{key}: {_format(old)} → {_format(value)}")


def _format(value: Any) -> str:
    return "unset" if value is UNSET else brief(value, partial(json.dumps, ensure_ascii=False))


def parse_assignments(texts: Iterable[str], source: str) -> dict[str, Any]:
    """Parse `KEY=VALUE` with values in YAML, as `dvc exp run -S`; UsageError names the source."""
    values = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise UsageError(f"{source} {printable(text)}: give KEY=VALUE")
        if key in values:
            raise UsageError(f"{source} {printable(text)}: {printable(key)} is given twice: give one value")
        try:
            values[key] = parse_yaml(value)
        except YamlRefusal as refusal:
            raise UsageError(f"{source} {printable(text)}: {refusal}") from None
    return values


def replace_values(text: str, values: Mapping[tuple[str, ...], Any]) -> str:
    """Return the text of params.yaml with these values; UsageError if one cannot be replaced."""
    for path, value in values.items():
        try:
            text = edit_yaml(text, path, value)
        except YamlRefusal as refusal:
            raise UsageError(f"{PARAMS}: {refusal}") from None
    return text


def find_profile(profile: str, wanted: str = "profile and no file") -> Path:
    """Return the file of the profile; UsageError lists the profiles, after what was `wanted`."""
    for path in (PROFILES / f"{profile}.yaml", Path(profile)):
        if path.is_file():
            return path
    names = ", ".join(profile_names()) or "none"
    raise UsageError(f"no {wanted} {brief(profile, str)}; the profiles are: {names}")


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
