"""Edits of params.yaml in place: the pretrained model (train.init_from), and the protocol of a paper."""

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import typer

from cli.actions.params_file import replace_values
from diffusion.check.findings import Project
from diffusion.check.params_changes import adopt_protocol, format_sections, needed_changes
from diffusion.config import load, parse
from diffusion.images.image_size import format_size, height_and_width
from diffusion.layout import PARAMS
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.files import write_text
from diffusion.system.params import REMOVED, parse_yaml
from diffusion.system.section import brief
from diffusion.train.pretrained import dvc_file, store_pretrained
from tracking.keys import CHAMPION, model_name
from tracking.registry.registered_models import fetch_version_files, project_model
from tracking.runs.scored_runs import fetch_model

VERSION = "version"  # version:N of the registered model
PINNED = ("train", "init_from", "sha256")  # the key in params.yaml


def use_pretrained(name: str) -> None:
    """Copy the model into the folder `start`, and pin its SHA-256 in params.yaml."""
    load()  # an invalid params.yaml is refused before any download
    if name == "none":
        write_text(PARAMS, replace_values({PINNED[:-1]: None}))
        return typer.echo(f"{PARAMS}: train.init_from is null; the weights are random")
    path, artefact = store_pretrained(_model(name))
    if has_dvc := Path(".dvc").is_dir():
        command = [sys.executable, "-m", "dvc", "add", "--quiet", str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise DiffctlError(f"DVC cannot track {path} ({brief(done.stderr, str)})")
    write_text(PARAMS, replace_values({PINNED: artefact.model_sha256}))
    spec = artefact.network
    shape, classes = format_size(spec.pixel_shape), f"{spec.num_classes} classes"
    about = f"{artefact.step:,} steps of {artefact.data.name}, {shape}, {classes}"
    typer.echo(f"{PARAMS}: train.init_from is {artefact.model_sha256[:16]}, {about}: {path}")
    if has_dvc:
        typer.echo(f"DVC tracks it: commit {dvc_file(path)} with {PARAMS}; `dvc push` sends it to the remote")
    config, size = load(), spec.size
    with suppress(DiffctlError):  # no prepared data
        size = height_and_width(Project(config).train_meta()["image_size"])
    if changes := needed_changes(config, artefact, size):
        typer.echo(f"it fits with these values in {PARAMS}:\n{format_sections(changes)}")
    else:
        typer.echo("run `diffctl check` to see whether it fits")


def _model(name: str) -> Path:
    """Return the file of a path, a champion, a version or an MLflow run."""
    if Path(name).exists():
        return Path(name)
    kind, _, data = name.partition(":")
    text, _, data = data.partition(":") if kind == VERSION else ("", "", data)
    if text and not (text.isdecimal() and len(text) < 10):
        raise UsageError(f"--init-from: {brief(text, str)} is no version: `diffctl history` lists them")
    if kind == CHAMPION or text:
        number = int(text) if text else None
        return fetch_version_files(model_name(data) if data else project_model(), number).files.model
    return Path(name) if name.endswith(".safetensors") else fetch_model(name)  # reading it raises the error


def use_protocol(name: str) -> None:
    """Set each field that differs from the paper; print the changes, and what cannot be set."""
    changes, left = adopt_protocol(name, load().model_dump(mode="json"))
    written = parse_yaml(PARAMS.read_text(encoding="utf-8"))
    for one in list(changes):
        section, key = one.field.split(".")
        if one.new is REMOVED and key not in written[section]:  # it has its default
            changes.remove(one)
    text = replace_values({tuple(one.field.split(".")): one.new for one in changes})
    parse(parse_yaml(text), f"{PARAMS} by the protocol {name}")  # validated before the file is written
    if changes:
        write_text(PARAMS, text)
    else:
        typer.echo(f"{PARAMS} follows the protocol {name} already")
    for change in changes:
        typer.echo(str(change))
    if any(one.field.startswith("process.") for one in changes):
        typer.echo("process has changed: the next `diffctl run` trains from scratch")
    if left:
        typer.echo("\n".join(["not set:", *(f"  {field}: {why}" for field, why in left.items())]))
