"""Options that several commands have, and checks of options that need no heavy import."""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from diffusion.layout import MODEL
from diffusion.model.presets import PRESETS
from diffusion.protocol.extractors import EXTRACTORS
from diffusion.protocol.spacing import SPACINGS
from diffusion.system.errors import UsageError, printable
from diffusion.system.output_paths import check_output

MAX_ARGUMENT = 4096  # characters of an argument without commas
PROFILES = Path("profiles")

# Choices from the names in registries.
Spacing = StrEnum("Spacing", {name: name for name in SPACINGS})  # type: ignore[misc]
Extractor = StrEnum("Extractor", {name: name for name in EXTRACTORS})  # type: ignore[misc]
Preset = StrEnum("Preset", {name: name for name in PRESETS})  # type: ignore[misc]


def profile_names() -> list[str]:
    """Return the names in profiles/, also for shell completion."""
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


ModelFile = Annotated[Path | None, typer.Option("--model", help=f"A model file. [default: {MODEL}]")]
RunId = Annotated[str | None, typer.Option("--run-id", help="The model of this MLflow run.")]
Champion = Annotated[
    bool, typer.Option("--champion", help="The registered champion for the data of params.yaml.")
]
Profile = Annotated[
    str | None,
    typer.Option(
        "--profile",
        help="A name in profiles/, or a file. [default: params.yaml]",
        autocompletion=profile_names,
    ),
]
StorePath = Annotated[
    Path | None,
    typer.Option("--images", help="The image store that numbers refer to. [default: data/prepared/test]"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


class Selection(NamedTuple):
    """The options that select a model, or else a configuration."""

    model: Path | None
    run_id: str | None
    champion: bool
    profile: str | None = None

    @property
    def names_model(self) -> bool:
        """Whether a model is named."""
        return self.model is not None or self.run_id is not None or self.champion

    def check(self) -> None:
        """Raise UsageError if two models, or a model and a profile, are named."""
        if sum((self.model is not None, self.run_id is not None, self.champion)) > 1:
            raise UsageError("--model, --run-id and --champion exclude each other: give one of them")
        if self.names_model and self.profile is not None:
            raise UsageError("--profile excludes --model, --run-id and --champion: give one of them")


def file_option(*flags: str, help: str) -> Any:
    """Return an option that names an output file."""
    return typer.Option(*flags, parser=_file, metavar="FILE", help=help)


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


def flags_given(context: typer.Context, names: Sequence[str]) -> list[str]:
    """Return the flags of the named parameters that the command line sets."""
    flags = {parameter.name: parameter.opts[0] for parameter in context.command.params}
    return [flags[name] for name in names if _is_given(context, name)]


def refuse_idle(context: typer.Context, name: str, idle: bool, why: str) -> None:
    """Raise UsageError if a parameter is given and has no effect; `why` ends the sentence."""
    if idle and (flags := flags_given(context, [name])):
        raise UsageError(f"{flags[0]} does nothing {why}: leave it out")


def refuse_long(arguments: Sequence[str]) -> None:
    """Raise UsageError if an argument is longer than any path or name; lists may be longer."""
    for argument in arguments:
        if len(argument) > MAX_ARGUMENT and "," not in argument:
            begins = argument[:20].encode("utf-8", "backslashreplace").decode()
            raise UsageError(
                f"the argument {begins!r}… has {len(argument):,} characters: give {MAX_ARGUMENT:,} at most"
            )


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
