"""The model that a training is initialised from."""

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import typer

from cli.actions.params_file import replace_values
from diffusion.check.findings import Project
from diffusion.check.pretrained_shape import format_sections, needed_changes
from diffusion.config import load
from diffusion.layout import PARAMS
from diffusion.model.model_file import Artefact
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.files import write_atomic
from diffusion.system.section import brief
from diffusion.train.pretrained import dvc_file, store_pretrained
from tracking.keys import CHAMPION, model_name
from tracking.registry.registered_models import fetch_champion, fetch_version
from tracking.runs.scored_runs import fetch_model

NO_START = "none"
VERSION = "version"  # of the registered model, behind a colon its number
DIGITS = 10  # more than MLflow counts in
PINNED = ("train", "init_from", "sha256")  # what `--start` writes in params.yaml


def use_pretrained(name: str) -> None:
    """Fetch the model into the folder `start`, and pin it in params.yaml by its SHA-256."""
    load()  # what is no params file is told before anything is fetched
    if name == NO_START:
        _write_start(PINNED[:-1], None)
        typer.echo(f"{PARAMS}: train.init_from is null; the weights are drawn")
        return

    path, artefact = store_pretrained(_model(name))
    tracked = _track(path)
    _write_start(PINNED, artefact.model_sha256)
    typer.echo(f"{PARAMS}: train.init_from is {artefact.model_sha256[:16]}, {_told(artefact)}: {path}")
    if tracked:
        typer.echo(f"DVC tracks it: commit {tracked} with {PARAMS}; `dvc push` sends it to the remote")
    typer.echo(_to_change(artefact))


def _to_change(artefact: Artefact) -> str:
    """What of params.yaml differs from the start, to be pasted; as far as it can be told without the data."""
    config = load()
    try:
        side = int(Project(config).train_meta()["image_size"])
    except DiffctlError:  # nothing is known of the images
        side = artefact.network.image_size
    changes = needed_changes(config, artefact, side)
    if not changes:
        return "`diffctl check` says whether it fits"
    return f"it fits once {PARAMS} says, as the start does:\n{format_sections(changes)}"


def _told(artefact: Artefact) -> str:
    spec = artefact.network
    shape = f"{spec.image_size}×{spec.image_size}×{spec.in_channels}"
    return f"{artefact.step:,} steps of {artefact.data.name}, {shape}, {spec.num_classes} classes"


def _model(name: str) -> Path:
    """The model file that is meant: a file that is there, a data set's champion or version, else a run's."""
    kind, _, data = name.partition(":")
    with suppress(OSError, ValueError):  # what no file can be called
        if Path(name).exists():
            return Path(name)
    if kind == CHAMPION:
        return fetch_champion(model_name(data or load().data.name))
    if kind == VERSION and data:
        return _version(data)
    if name.endswith(".safetensors"):
        return Path(name)  # reading it says that there is none

    return fetch_model(name)


def _version(named: str) -> Path:
    """The file of the registered version that is named as N or N:DATA."""
    number, _, data = named.partition(":")
    if not (number.isascii() and number.isdecimal() and len(number) < DIGITS and int(number)):
        raise UsageError(
            f"--start: {brief(number, str)} is no version's number: `diffctl history` lists some"
        )
    return fetch_version(model_name(data or load().data.name), int(number))


def _write_start(path: tuple[str, ...], value: str | None) -> None:
    text = replace_values({path: value})
    write_atomic(PARAMS, lambda file: file.write(text.encode()))


def _track(path: Path) -> Path | None:
    """Let DVC track the file, so that a clone can have it; the file to commit. None outside a DVC project."""
    if not Path(".dvc").is_dir():
        return None
    command = [sys.executable, "-m", "dvc", "add", "--quiet", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise DiffctlError(f"DVC cannot track {path} ({said[0] if said else 'it does not say why'})")
    return dvc_file(path)
