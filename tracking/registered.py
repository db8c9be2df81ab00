"""Registered versions for those who choose one: which there are, and all of one at once."""

from pathlib import Path
from typing import NamedTuple

from diffusion.protocol.scores import ScoresDocument
from diffusion.system.errors import UsageError
from tracking.champion import champion_version
from tracking.store import connect, database_file, failures, tracking_uri
from tracking.versions import get_version, is_ours, scores_of, weights_of


class Registered(NamedTuple):
    """A version of a registered model, and whether it is champion."""

    version: int
    is_champion: bool


class WholeVersion(NamedTuple):
    """A version's model file in the cache, and the scores that it was registered with."""

    file: Path
    scores: ScoresDocument


def registered_versions(name: str) -> list[Registered]:
    """The versions of a model that diffctl has registered, the newest first; none where there is no store."""
    uri = tracking_uri()
    database = database_file(uri)
    if database is not None and not database.exists():
        return []
    with failures(uri):
        found = connect(uri).search_model_versions(f"name = '{name}'")
    champion = champion_version(name)
    numbers = sorted((int(one.version) for one in found if is_ours(one)), reverse=True)
    return [Registered(number, number == champion) for number in numbers]


def fetch_whole_version(name: str, number: int) -> WholeVersion:
    """The file and the scores of a version.

    UsageError when there is none, DiffctlError when its file is another one than was registered.
    """
    uri = tracking_uri()
    with failures(uri):
        client = connect(uri)
        registered = get_version(client, name, number)
    if registered is None:
        raise UsageError(f"{name} has no version {number}")
    return WholeVersion(weights_of(client, registered), scores_of(client, registered))
