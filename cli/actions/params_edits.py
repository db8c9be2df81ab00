"""Edits of params.yaml in place: the pretrained model (train.init_from), and the protocol of a paper."""

import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer

from cli.actions.params_file import replace_values
from diffusion.check.adopt_protocol import adopt_protocol
from diffusion.check.findings import Project
from diffusion.check.pretrained_shape import format_sections, needed_changes
from diffusion.config import load, parse
from diffusion.layout import PARAMS
from diffusion.model.model_file import Artefact
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.files import write_atomic
from diffusion.system.section import brief
from diffusion.system.yaml_text import REMOVED, parse_yaml
from diffusion.train.pretrained import dvc_file, store_pretrained
from tracking.keys import CHAMPION, model_name
from tracking.registry.registered_models import fetch_version_files
from tracking.runs.scored_runs import fetch_model

NO_START = "none"
VERSION = "version"  # version:N of the registered model
DIGITS = 10  # at most
PINNED = ("train", "init_from", "sha256")  # the key in params.yaml


def use_pretrained(name: str) -> None:
    """Copy the model into the folder `start`, and pin its SHA-256 in params.yaml."""
    load()  # an invalid params.yaml is refused before any download
    if name == NO_START:
        _write_start(PINNED[:-1], None)
        typer.echo(f"{PARAMS}: train.init_from is null; the weights are random")
        return

    path, artefact = store_pretrained(_model(name))
    tracked = _track(path)
    _write_start(PINNED, artefact.model_sha256)
    typer.echo(f"{PARAMS}: train.init_from is {artefact.model_sha256[:16]}, {_describe(artefact)}: {path}")
    if tracked:
        typer.echo(f"DVC tracks it: commit {tracked} with {PARAMS}; `dvc push` sends it to the remote")
    typer.echo(_needed_changes(artefact))


def _needed_changes(artefact: Artefact) -> str:
    """Return the values of params.yaml that must change for this model, as YAML."""
    config = load()
    try:
        side = int(Project(config).train_meta()["image_size"])
    except DiffctlError:  # no prepared data
        side = artefact.network.image_size
    changes = needed_changes(config, artefact, side)
    if not changes:
        return "run `diffctl check` to see whether it fits"
    return f"it fits with these values in {PARAMS}:\n{format_sections(changes)}"


def _describe(artefact: Artefact) -> str:
    spec = artefact.network
    shape = f"{spec.image_size}×{spec.image_size}×{spec.in_channels}"
    return f"{artefact.step:,} steps of {artefact.data.name}, {shape}, {spec.num_classes} classes"


def _model(name: str) -> Path:
    """Return the file of a path, a champion, a version or an MLflow run."""
    kind, _, data = name.partition(":")
    with suppress(OSError, ValueError):  # what no file can be called
        if Path(name).exists():
            return Path(name)
    if kind == CHAMPION:
        return _version(data, None)
    if kind == VERSION and data:
        number, _, data = data.partition(":")
        return _version(data, _number(number))
    if name.endswith(".safetensors"):
        return Path(name)  # reading it raises the error

    return fetch_model(name)


def _number(text: str) -> int:
    """Return the number of a version."""
    if not (text.isascii() and text.isdecimal() and len(text) < DIGITS and int(text)):
        raise UsageError(f"--init-from: {brief(text, str)} is no version: `diffctl history` lists them")
    return int(text)


def _version(data: str, number: int | None) -> Path:
    """Return the file of a version (None: the champion) of that data set, by default of params.yaml's."""
    return fetch_version_files(model_name(data or load().data.name), number).files.model


def _write_start(path: tuple[str, ...], value: str | None) -> None:
    text = replace_values({path: value})
    write_atomic(PARAMS, lambda file: file.write(text.encode()))


def _track(path: Path) -> Path | None:
    """Add the file to DVC and return the .dvc file to commit; None outside of a DVC project."""
    if not Path(".dvc").is_dir():
        return None
    command = [sys.executable, "-m", "dvc", "add", "--quiet", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        errors = done.stderr.strip().splitlines()
        raise DiffctlError(f"DVC cannot track {path} ({errors[0] if errors else 'without a message'})")
    return dvc_file(path)


def _has(written: Any, field: str) -> bool:
    """Return whether params.yaml has the field; otherwise it has its default."""
    section, key = field.split(".")
    return key in written[section]


def use_protocol(name: str) -> None:
    """Set each field that differs from the paper; print the changes, and what cannot be set."""
    config = load()
    changes, left = adopt_protocol(name, config.model_dump(mode="json"))
    written = parse_yaml(PARAMS.read_text(encoding="utf-8"))
    changes = [one for one in changes if one.new is not REMOVED or _has(written, one.field)]
    text = replace_values({tuple(one.field.split(".")): one.new for one in changes})
    parse(parse_yaml(text), f"{PARAMS} by the protocol {name}")  # validated before the file is written
    if changes:
        write_atomic(PARAMS, lambda file: file.write(text.encode()))
    else:
        typer.echo(f"{PARAMS} follows the protocol {name} already")
    for change in changes:
        typer.echo(str(change))
    if any(one.field.startswith("process.") for one in changes):
        typer.echo("process has changed: the next `diffctl run` trains from scratch")
    if left:
        typer.echo("not set:")
    for one in left:
        typer.echo(f"  {one}")
