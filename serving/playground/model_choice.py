"""The model of the page: the one given at start, or a registered version chosen there."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from diffusion.system.errors import DiffctlError
from diffusion.system.section import PositiveInt
from serving.model_source import ModelSource, PublishedModel
from serving.service import Service
from tracking.keys import model_name
from tracking.registry.registered_models import fetch_version_files
from tracking.registry.registered_models import list_versions as registered_versions


class VersionRequest(BaseModel):
    """A version of the registered model; None selects the model given at start."""

    model_config = ConfigDict(extra="forbid", strict=True)

    version: PositiveInt | None


class ChoosableSource:
    """A source that serves the `chosen` (name, version), or the model of the first source for None."""

    def __init__(self, first: ModelSource) -> None:
        self._first = first
        self.chosen: tuple[str, int] | None = None
        self._fetched: tuple[str, int] | None = None

    def fetch(self) -> PublishedModel:
        """Return the chosen model; raise UsageError if it does not exist."""
        chosen = self.chosen
        if chosen is None:
            published = self._first.fetch()
        else:
            published = PublishedModel(chosen[0], *fetch_version_files(*chosen))
        self._fetched = chosen
        return published

    def has_changed(self, since: PublishedModel) -> bool:
        """Return whether another version was chosen, or the first source changed if it is in use."""
        if self.chosen != self._fetched:
            return True
        return self.chosen is None and self._first.has_changed(since)


async def choose_version(service: Service, source: ChoosableSource, request: VersionRequest) -> None:
    """Serve that version; if it fails to load, raise and keep the current one."""
    before = source.chosen
    source.chosen = None if request.version is None else (_registered_name(service), request.version)
    try:
        await service.refresh()
    except Exception:  # the next poll must not try the same again
        source.chosen = before
        raise


def list_versions(service: Service, source: ChoosableSource) -> dict[str, Any]:
    """Return the registered versions, newest first, and the chosen one, or `why` there are none."""
    name, why = _registered_name(service), None
    versions: list[dict[str, Any]] = []
    try:
        found = registered_versions(name)
        versions = [{"version": one.version, "champion": one.is_champion} for one in found]
    except DiffctlError as error:
        why = str(error)
    return {"name": name, "versions": versions, "chosen": source.chosen and source.chosen[1], "why": why}


def _registered_name(service: Service) -> str:
    """Return the registered name of the model that serves, for a file that of its data set."""
    model = service.current
    registered = model.published.version is not None
    return model.published.name if registered else model_name(model.artefact.data.name)
