"""The model or configuration that a command's options name."""

from pathlib import Path
from typing import NamedTuple

from cli.actions.params_file import find_profile
from cli.shared.options import refuse_two_models
from diffusion.config import Config, load
from diffusion.layout import MODEL, PARAMS
from diffusion.model.model_file import read_artefact
from diffusion.process.process_config import ProcessConfig
from diffusion.system.errors import UsageError
from tracking.keys import model_name
from tracking.registry.registered_models import fetch_champion
from tracking.runs.scored_runs import fetch_model


def resolve_model(model: Path | None, run_id: str | None, champion: bool) -> Path:
    """Return the named model file, downloaded if needed; UsageError if more than one is named."""
    refuse_two_models(model, run_id, champion)
    if run_id is not None:
        return fetch_model(run_id)
    if champion:
        return fetch_champion(model_name(load().data.name))
    return model or MODEL


class Selection(NamedTuple):
    """The options that select a configuration or a model."""

    profile: str | None
    model: Path | None
    run_id: str | None
    champion: bool

    @property
    def names_model(self) -> bool:
        """Whether a model is named; UsageError if a profile is named too."""
        named = self.model is not None or self.run_id is not None or self.champion
        if named and self.profile is not None:
            raise UsageError("--profile excludes --model, --run-id and --champion: give one of them")
        return named

    def config(self) -> Config:
        """Return the named configuration, by default params.yaml."""
        return load(PARAMS if self.profile is None else find_profile(self.profile))

    def model_file(self) -> Path:
        """Return the named model file, by default the one of this project."""
        return resolve_model(self.model, self.run_id, self.champion)

    def process(self) -> ProcessConfig:
        """Return the process of the named model, or else of the configuration."""
        return read_artefact(self.model_file()).process if self.names_model else self.config().process
