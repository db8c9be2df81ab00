"""Options that several commands have, and checks of options that need no heavy import."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.shared.command import Options
from diffusion.layout import MODEL
from diffusion.model.presets import PRESETS
from diffusion.protocol.extractors import EXTRACTORS
from diffusion.protocol.spacing import SPACINGS
from diffusion.system.errors import UsageError, printable
from diffusion.system.output_paths import check_output

PROFILES = Path("profiles")

# Choices from the names in registries.
Spacing = StrEnum("Spacing", {name: name for name in SPACINGS})  # type: ignore[misc]
Extractor = StrEnum("Extractor", {name: name for name in EXTRACTORS})  # type: ignore[misc]
Preset = StrEnum("Preset", {name: name for name in PRESETS})  # type: ignore[misc]


def profile_names() -> list[str]:
    """Return the names in profiles/, also for shell completion."""
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


StorePath = Annotated[
    Path | None,
    typer.Option("--images", help="The image store that numbers refer to. [default: data/prepared/test]"),
]


@dataclass(kw_only=True)
class JsonOptions(Options):
    """The option of a command that can print JSON."""

    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False

    def answer(self, values: object, text: str | Callable[[], object]) -> None:
        """Print the values as JSON with --json, else the text; `text` may be a function that prints."""
        if self.as_json:
            typer.echo(json.dumps(values, indent=2, ensure_ascii=False, default=str))
        elif callable(text):
            text()
        else:
            typer.echo(text)


@dataclass(kw_only=True)
class ModelOptions(Options):
    """The options that select a model."""

    model: Annotated[Path | None, typer.Option(help=f"A model file. [default: {MODEL}]")] = None
    run_id: Annotated[str | None, typer.Option(help="The model of this MLflow run.")] = None
    champion: Annotated[
        bool, typer.Option("--champion", help="The registered champion for the data of params.yaml.")
    ] = False

    @property
    def names_model(self) -> bool:
        """Whether a model is named."""
        return self.model is not None or self.run_id is not None or self.champion

    def check(self) -> None:
        """Raise UsageError if two models are named."""
        if sum((self.model is not None, self.run_id is not None, self.champion)) > 1:
            raise UsageError("--model, --run-id and --champion exclude each other: give one of them")


@dataclass(kw_only=True)
class ProfileOptions(ModelOptions):
    """The options that select a model, or else a configuration."""

    profile: Annotated[
        str | None,
        typer.Option(
            help="A name in profiles/, or a file. [default: params.yaml]", autocompletion=profile_names
        ),
    ] = None

    def check(self) -> None:
        """Raise UsageError if two models, or a model and a profile, are named."""
        super().check()
        if self.names_model and self.profile is not None:
            raise UsageError("--profile excludes --model, --run-id and --champion: give one of them")


def file_option(*flags: str, help: str) -> Any:
    """Return an option that names an output file."""
    return typer.Option(*flags, parser=_file, metavar="FILE", help=help)


def out_option(help: str) -> Any:
    """Return the option --out, an output file."""
    return file_option("--out", "-o", help=help)


def folder_option(*flags: str, help: str) -> Any:
    """Return an option that names an output folder."""
    return typer.Option(*flags, parser=_folder, metavar="FOLDER", help=help)


def folder_argument(help: str) -> Any:
    """Return an argument that names a new folder."""
    return typer.Argument(parser=_folder, metavar="FOLDER", help=help)


def _file(given: str | Path) -> Path:
    """Return the path; UsageError if it cannot name a file."""
    text = str(given)  # a default is a path already
    if text == "-":
        raise UsageError("- is no file name: standard output is /dev/stdout, a file of that name ./-")
    if not text or text.endswith("/"):
        raise UsageError(f"{printable(text)!r} is no file name: give one")
    return Path(text)


def _folder(given: str | Path) -> Path:
    """Return the path; UsageError if it is empty."""
    if not str(given):
        raise UsageError("'' is no folder name: give one")
    return Path(given)


def check_output_suffix(out: Path, suffixes: Sequence[str]) -> None:
    """Raise UsageError if the file has another suffix or cannot be written."""
    if out.suffix not in suffixes:
        raise UsageError(f"--out {printable(out)}: give a file that ends in {' or '.join(suffixes)}")
    check_output(out, "--out")
