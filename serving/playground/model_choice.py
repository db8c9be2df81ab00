"""Which model the page shows: the one it was started with, or a registered version that is chosen there."""

from pydantic import BaseModel, ConfigDict

from diffusion.system.errors import DiffctlError
from diffusion.system.section import PositiveInt
from serving.model_source import ModelSource, PublishedModel
from serving.service import Service


class VersionRequest(BaseModel):
    """A version of the registered model for the data of the one that answers; None: what was started with."""

    model_config = ConfigDict(extra="forbid", strict=True)

    version: PositiveInt | None


class Version(BaseModel):
    """A registered version, and whether it is champion."""

    version: int
    champion: bool


class VersionsResponse(BaseModel):
    """The registered versions of `name`, the newest first, the chosen one, or `why` there are none."""

    name: str
    versions: list[Version]
    chosen: int | None
    why: str | None = None


class ChoosableSource:
    """A source of which another version may be chosen; None is what the `first` source has."""

    def __init__(self, first: ModelSource) -> None:
        self._first = first
        self.chosen: tuple[str, int] | None = None
        self._fetched: tuple[str, int] | None = None

    def fetch(self) -> PublishedModel:
        """The model that is chosen; UsageError when there is none."""
        from tracking.registry.registered_models import fetch_version_files

        chosen = self.chosen
        if chosen is None:
            published = self._first.fetch()
        else:
            whole = fetch_version_files(*chosen)
            published = PublishedModel(*chosen, whole.file, whole.scores)
        self._fetched = chosen
        return published

    def has_changed(self, since: PublishedModel) -> bool:
        """Whether another one was chosen, or the first source has moved where that is the one."""
        if self.chosen != self._fetched:
            return True
        return self.chosen is None and self._first.has_changed(since)


async def choose_version(service: Service, source: ChoosableSource, asked: VersionRequest) -> None:
    """Have that version answer. What is wrong with it is raised, and the choice stays as it was."""
    before = source.chosen
    source.chosen = None if asked.version is None else (_name(service), asked.version)
    try:
        await service.look()
    except Exception:  # whatever it is, the next look is not to try the same again
        source.chosen = before
        raise


def list_versions(service: Service, source: ChoosableSource) -> VersionsResponse:
    """The versions there are to choose from. It asks MLflow, which may take seconds."""
    from tracking.registry.registered_models import list_versions

    name, chosen = _name(service), source.chosen
    answer = VersionsResponse(name=name, versions=[], chosen=chosen[1] if chosen else None)
    try:
        answer.versions = [
            Version(version=one.version, champion=one.is_champion) for one in list_versions(name)
        ]
    except DiffctlError as error:
        answer.why = str(error)
    return answer


def _name(service: Service) -> str:
    """The registered model to choose from: the one that answers, or that of its data where it is a file."""
    from tracking.keys import model_name

    model = service.current
    registered = model.published.version is not None
    return model.published.name if registered else model_name(model.artefact.data.name)
