"""`diffctl use`: params.yaml becomes a profile, starts from a model or follows a paper; no edits are lost."""

import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.shared.first_word import begin

if TYPE_CHECKING:
    from collections.abc import Mapping

    from diffusion.model.model_file import Artefact

PROFILES = Path("profiles")
NO_START = "none"
VERSION = "version"  # of the registered model, behind a colon its number
DIGITS = 10  # more than MLflow counts in
PINNED = ("train", "start", "sha256")  # what `--start` writes in params.yaml


def profile_names() -> list[str]:
    """The names in profiles/, also for a shell that completes one."""
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


def protocol_names() -> list[str]:
    """The papers whose protocol is known, also for a shell that completes one."""
    from diffusion.protocol.paper_protocols import PROTOCOLS

    return list(PROTOCOLS)


def use(
    profile: Annotated[
        str | None, typer.Argument(help="A name in profiles/, or a file.", autocompletion=profile_names)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite unsaved edits.")] = False,
    start: Annotated[
        str | None,
        typer.Option(
            "--start",
            metavar="MODEL",
            help="Train from a file, an MLflow run, champion[:DATA] or version:N[:DATA]; or from none.",
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            "--protocol",
            metavar="PAPER",
            help="Set what a paper's protocol states: adm, edm or ddim.",
            autocompletion=protocol_names,
        ),
    ] = None,
) -> None:
    """Copy a profile to params.yaml, comments included; pin the model that its training starts from.

    --protocol writes each field in which params.yaml departs from a paper, and says which and why.
    """
    from diffusion.system.errors import UsageError

    if profile is None and start is None and protocol is None:
        raise UsageError("name a profile, a model with --start, or a paper with --protocol")
    if protocol is not None:
        _refuse_unknown(protocol)
    if profile is not None:
        _use_profile(profile, force)
    if protocol is not None:
        _use_protocol(protocol)
    if start is not None:
        _use_start(start)


def _use_profile(profile: str, force: bool) -> None:
    from diffusion.config import load
    from diffusion.layout import PARAMS
    from diffusion.system.errors import UsageError
    from diffusion.system.files import write_atomic

    source = find_profile(profile)
    load(source)
    text = source.read_bytes()
    if not force and _has_unsaved_edits(PARAMS, text):
        raise UsageError(
            f"{PARAMS} has edits that are neither committed nor in {PROFILES}/: "
            f"keep it (`cp {PARAMS} {PROFILES}/NAME.yaml`), or overwrite it with --force"
        )
    write_atomic(PARAMS, lambda file: file.write(text))
    typer.echo(f"{PARAMS} is now {source}; `diffctl run` makes it")


def _refuse_unknown(protocol: str) -> None:
    from diffusion.system.errors import UsageError
    from diffusion.system.section import brief

    if protocol not in protocol_names():
        names = ", ".join(protocol_names())
        raise UsageError(f"--protocol: there is no {brief(protocol, str)}; the protocols are: {names}")


def _use_protocol(name: str) -> None:
    """Write each field in which params.yaml departs from the paper, and say what stays and why."""
    from diffusion.check.adopt_protocol import adopt_protocol
    from diffusion.config import load, parse
    from diffusion.layout import PARAMS
    from diffusion.system.files import write_atomic
    from diffusion.system.yaml_text import parse_yaml

    begin("looking for what the protocol needs")
    config = load()
    changes, left = adopt_protocol(name, config.model_dump(mode="json"))
    text = _with_values({tuple(one.field.split(".")): one.new for one in changes})
    parse(parse_yaml(text), f"{PARAMS} by the protocol {name}")  # before anything is written
    if changes:
        write_atomic(PARAMS, lambda file: file.write(text.encode()))
    else:
        typer.echo(f"{PARAMS} has all of the protocol {name} that can be set")
    for change in changes:
        typer.echo(str(change))
    if any(one.field.startswith("process.") for one in changes):
        typer.echo("process decides the training: the next `diffctl run` trains anew")
    if left:
        typer.echo("not set:")
    for one in left:
        typer.echo(f"  {one}")


def _use_start(name: str) -> None:
    """Fetch the model into the folder `start`, and pin it in params.yaml by its SHA-256."""
    from diffusion.config import load
    from diffusion.layout import PARAMS

    load()  # what is no params file is told before anything is fetched
    if name == NO_START:
        _write_start(PINNED[:-1], None)
        typer.echo(f"{PARAMS}: train.start is null; the weights are drawn")
        return
    begin("looking for the model")
    from diffusion.train.pretrained import store_pretrained

    path, artefact = store_pretrained(_model(name))
    tracked = _track(path)
    _write_start(PINNED, artefact.model_sha256)
    typer.echo(f"{PARAMS}: train.start is {artefact.model_sha256[:16]}, {_told(artefact)}: {path}")
    if tracked:
        typer.echo(f"DVC tracks it: commit {tracked} with {PARAMS}; `dvc push` sends it to the remote")
    typer.echo(_to_change(artefact))


def _to_change(artefact: "Artefact") -> str:
    """What of params.yaml differs from the start, to be pasted; as far as it can be told without the data."""
    from diffusion.check.findings import Project
    from diffusion.check.pretrained_shape import format_sections, needed_changes
    from diffusion.config import load
    from diffusion.layout import PARAMS
    from diffusion.system.errors import DiffctlError

    config = load()
    try:
        side = int(Project(config).train_meta()["image_size"])
    except DiffctlError:  # nothing is known of the images
        side = artefact.network.image_size
    changes = needed_changes(config, artefact, side)
    if not changes:
        return "`diffctl check` says whether it fits"
    return f"it fits once {PARAMS} says, as the start does:\n{format_sections(changes)}"


def _told(artefact: "Artefact") -> str:
    spec = artefact.network
    shape = f"{spec.image_size}×{spec.image_size}×{spec.in_channels}"
    return f"{artefact.step:,} steps of {artefact.data.name}, {shape}, {spec.num_classes} classes"


def _model(name: str) -> Path:
    """The model file that is meant: a file that is there, a data set's champion or version, else a run's."""
    from diffusion.config import load
    from tracking.keys import CHAMPION, model_name

    kind, _, data = name.partition(":")
    with suppress(OSError, ValueError):  # what no file can be called
        if Path(name).exists():
            return Path(name)
    if kind == CHAMPION:
        from tracking.registry.model_registry import fetch_champion

        return fetch_champion(model_name(data or load().data.name))
    if kind == VERSION and data:
        return _version(data)
    if name.endswith(".safetensors"):
        return Path(name)  # reading it says that there is none
    from tracking.runs.scored_runs import fetch_model

    return fetch_model(name)


def _version(named: str) -> Path:
    """The file of the registered version that is named as N or N:DATA."""
    from diffusion.config import load
    from diffusion.system.errors import UsageError
    from diffusion.system.section import brief
    from tracking.keys import model_name
    from tracking.registry.model_registry import fetch_version

    number, _, data = named.partition(":")
    if not (number.isascii() and number.isdecimal() and len(number) < DIGITS and int(number)):
        raise UsageError(
            f"--start: {brief(number, str)} is no version's number: `diffctl history` lists some"
        )
    return fetch_version(model_name(data or load().data.name), int(number))


def _write_start(path: tuple[str, ...], value: str | None) -> None:
    from diffusion.layout import PARAMS
    from diffusion.system.files import write_atomic

    text = _with_values({path: value})
    write_atomic(PARAMS, lambda file: file.write(text.encode()))


def _with_values(values: "Mapping[tuple[str, ...], Any]") -> str:
    """The text of params.yaml with other values at some places; UsageError where one cannot be written."""
    from diffusion.layout import PARAMS
    from diffusion.system.errors import UsageError
    from diffusion.system.yaml_text import YamlRefusal, edit_yaml

    text = PARAMS.read_text(encoding="utf-8")
    for path, value in values.items():
        try:
            text = edit_yaml(text, path, value)
        except YamlRefusal as refusal:
            raise UsageError(f"{PARAMS}: {refusal}") from None
    return text


def _track(path: Path) -> Path | None:
    """Let DVC track the file, so that a clone can have it; the file to commit. None outside a DVC project."""
    from diffusion.system.errors import DiffctlError
    from diffusion.train.pretrained import dvc_file

    if not Path(".dvc").is_dir():
        return None
    command = [sys.executable, "-m", "dvc", "add", "--quiet", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise DiffctlError(f"DVC cannot track {path} ({said[0] if said else 'it does not say why'})")
    return dvc_file(path)


def find_profile(profile: str) -> Path:
    """The profile's file; UsageError lists the profiles there are."""
    from diffusion.system.errors import UsageError
    from diffusion.system.section import brief

    named = PROFILES / f"{profile}.yaml"
    for path in (named, Path(profile)):
        with suppress(OSError, ValueError):  # what no file can be called
            if path.is_file():
                return path
    names = ", ".join(profile_names()) or "none"
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
