"""What a command looks at: a profile or params.yaml, or a model that describes itself."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from cli.commands.profiles import find_profile, profile_names
from cli.commands.sample import Champion, ModelFile, RunId, resolve_model

if TYPE_CHECKING:
    from diffusion.config import Config
    from diffusion.process.process_config import ProcessConfig

Profile = Annotated[
    str | None,
    typer.Option(
        "--profile",
        help="A name in profiles/, or a file. [default: params.yaml]",
        autocompletion=profile_names,
    ),
]

__all__ = ["Asked", "Champion", "ModelFile", "Profile", "RunId"]


class Asked(NamedTuple):
    """The options by which a command was told what to look at."""

    profile: str | None
    model: Path | None
    run_id: str | None
    champion: bool

    @property
    def names_model(self) -> bool:
        """Whether a model is named; UsageError where a profile is, too."""
        from diffusion.system.errors import UsageError

        named = self.model is not None or self.run_id is not None or self.champion
        if named and self.profile is not None:
            raise UsageError("--profile excludes --model, --run-id and --champion: give one of them")
        return named

    def config(self) -> "Config":
        """The configuration that is named, by default params.yaml's."""
        from diffusion.config import load
        from diffusion.layout import PARAMS

        return load(PARAMS if self.profile is None else find_profile(self.profile))

    def model_file(self) -> Path:
        """The model file that is named, by default the one that was trained here."""
        return resolve_model(self.model, self.run_id, self.champion)

    def process(self) -> "ProcessConfig":
        """The process of the model that is named, else of the configuration."""
        from diffusion.model.model_file import read_artefact

        return read_artefact(self.model_file()).process if self.names_model else self.config().process
