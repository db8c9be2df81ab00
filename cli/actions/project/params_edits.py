"""Edits of the text of params.yaml: the pretrained model (train.init_from), and the protocol of a paper."""

import subprocess
from contextlib import suppress
from pathlib import Path

from cli.actions.project.params_file import replace_values
from diffusion.check.findings import Project
from diffusion.check.params_changes import adopt_protocol, format_sections, needed_changes
from diffusion.config import parse
from diffusion.images.image_size import format_size, height_and_width
from diffusion.layout import PARAMS
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.params import REMOVED, parse_yaml
from diffusion.system.processes import PYTHON_MODULE
from diffusion.system.section import brief
from diffusion.train.pretrained import dvc_file, store_pretrained
from tracking.keys import CHAMPION, model_name
from tracking.registry.registered_models import fetch_version_files, project_model
from tracking.runs.scored_runs import fetch_model

VERSION = "version"  # version:N of the registered model
PINNED = ("train", "init_from", "sha256")  # the key in params.yaml


def with_pretrained(text: str, name: str) -> tuple[str, list[str]]:
    """Copy the model into the folder `start`; return the text with its SHA-256, and what to print."""
    parse(parse_yaml(text), str(PARAMS))  # an invalid one is refused before any download
    if name == "none":
        return replace_values(text, {PINNED[:-1]: None}), [
            f"{PARAMS}: train.init_from is null; the weights are random"
        ]
    path, artefact = store_pretrained(_model(name))
    if has_dvc := Path(".dvc").is_dir():
        command = [*PYTHON_MODULE, "dvc", "add", "--quiet", str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise DiffctlError(f"DVC cannot track {path} ({brief(done.stderr, str)})")
    text = replace_values(text, {PINNED: artefact.model_sha256})
    spec = artefact.network
    shape, classes = format_size(spec.pixel_shape), f"{spec.num_classes} classes"
    about = f"{artefact.step:,} steps of {artefact.data.name}, {shape}, {classes}"
    lines = [f"{PARAMS}: train.init_from is {artefact.model_sha256[:16]}, {about}: {path}"]
    if has_dvc:
        lines.append(
            f"DVC tracks it: commit {dvc_file(path)} with {PARAMS}; `dvc push` sends it to the remote"
        )
    config, size = parse(parse_yaml(text), str(PARAMS)), spec.size
    with suppress(DiffctlError):  # no prepared data
        size = height_and_width(Project(config).train_meta()["image_size"])
    if changes := needed_changes(config, artefact, size):
        lines.append(f"it fits with these values in {PARAMS}:\n{format_sections(changes)}")
    else:
        lines.append("run `diffctl check` to see whether it fits")
    return text, lines


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


def with_protocol(text: str, name: str) -> tuple[str, list[str]]:
    """Set each field that differs from the paper; return the text, the changes, and what cannot be set."""
    written = parse_yaml(text)
    changes, left = adopt_protocol(name, parse(written, str(PARAMS)).model_dump(mode="json"))
    for one in list(changes):
        section, key = one.field.split(".")
        if one.new is REMOVED and key not in written[section]:  # it has its default
            changes.remove(one)
    text = replace_values(text, {tuple(one.field.split(".")): one.new for one in changes})
    parse(parse_yaml(text), f"{PARAMS} by the protocol {name}")
    lines = list(map(str, changes)) or [f"{PARAMS} follows the protocol {name} already"]
    if any(one.field.startswith("process.") for one in changes):
        lines.append("process has changed: the next `diffctl run` trains from scratch")
    if left:
        lines += ["not set:", *(f"  {field}: {why}" for field, why in left.items())]
    return text, lines
