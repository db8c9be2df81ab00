"""The title of this project's images, which names its experiment and its registered model."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from diffusion.config import TrackingConfig
from diffusion.data.data_config import default_title
from diffusion.system.limits import MAX_NAME
from diffusion.system.params import PARAMS, read_params
from diffusion.system.section import Section, validate


class _Data(Section, extra="ignore"):
    name: Annotated[str, Field(pattern=r"^[\w.-]+$", max_length=MAX_NAME)]
    path: Any = None


class Project(Section, extra="ignore"):
    """The sections that name the images; of `data` only the name has to be valid."""

    data: _Data
    tracking: TrackingConfig = TrackingConfig()

    @property
    def title(self) -> str:
        """The title of the images."""
        return self.tracking.title or default_title(self.data.name, self.data.path)


def read_project() -> Project:
    """Read params.yaml; UsageError if it is missing or does not name the data."""
    return validate(Project, read_params(earlier_names=True), PARAMS)


def title_of(data: str) -> str:
    """Return the project's title if it has this data set, else the name of the data set."""
    if not Path(PARAMS).exists():
        return data
    project = read_project()
    return project.title if project.data.name == data else data
