"""Options that several commands have, and checks of options that need no heavy import."""

import json
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cli.shared.command import Options, option, shared_options
from diffusion.layout import MODEL
from diffusion.model.presets import PRESETS
from diffusion.protocol.extractors import EXTRACTORS
from diffusion.protocol.spacing import SPACINGS
from diffusion.system.errors import UsageError

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


@shared_options
class JsonOptions(Options):
    """The option of a command that can print JSON."""

    as_json: bool = option("Print the result as JSON.", "--json", default=False)

    def answer(self, values: object, text: str | Callable[[], object]) -> None:
        """Print the values as JSON with --json, else the text; `text` may be a function that prints."""
        if self.as_json:
            typer.echo(json.dumps(values, indent=2, ensure_ascii=False, default=str))
        elif callable(text):
            text()
        else:
            typer.echo(text)


@shared_options
class ModelOptions(Options):
    """The options that select a model."""

    model: Path | None = option(f"A model file. [default: {MODEL}]", default=None)
    run_id: str | None = option("The model of this MLflow run.", default=None)
    champion: bool = option("The registered champion for the data of params.yaml.", default=False)

    @property
    def names_model(self) -> bool:
        """Whether a model is named."""
        return self.model is not None or self.run_id is not None or self.champion

    def check(self) -> None:
        """Raise UsageError if two models are named."""
        if sum((self.model is not None, self.run_id is not None, self.champion)) > 1:
            raise UsageError("--model, --run-id and --champion exclude each other: give one of them")


@shared_options
class ProfileOptions(ModelOptions):
    """The options that select a model, or else a configuration."""

    profile: str | None = option(
        "A name in profiles/, or a file. [default: params.yaml]", autocompletion=profile_names, default=None
    )

    def check(self) -> None:
        """Raise UsageError if two models, or a model and a profile, are named."""
        super().check()
        if self.names_model and self.profile is not None:
            raise UsageError("--profile excludes --model, --run-id and --champion: give one of them")
