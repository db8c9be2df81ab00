"""Registered versions for those who choose one: which there are, and all of one at once."""

from pathlib import Path
from typing import NamedTuple

from diffusion.choice.model_cells import best_model_scores
from diffusion.protocol.scores import ScoresDocument
from diffusion.system.errors import UsageError
from tracking.keys import MODEL_SHA256, model_name
from tracking.registry.champion import champion_version
from tracking.registry.model_versions import (
    fetch_version_scores,
    fetch_version_weights,
    find_version,
    get_version,
    is_diffctl_version,
)
from tracking.runs.scored_runs import data_name
from tracking.store import connect, database_file, tracking_uri, translate_errors


class RegisteredVersion(NamedTuple):
    """A version of a registered model, and whether it is champion."""

    version: int
    is_champion: bool


class VersionFiles(NamedTuple):
    """A version's model file in the cache, and the scores that it was registered with."""

    file: Path
    scores: ScoresDocument


def list_versions(name: str) -> list[RegisteredVersion]:
    """The versions of a model that diffctl has registered, the newest first; none where there is no store."""
    uri = tracking_uri()
    database = database_file(uri)
    if database is not None and not database.exists():
        return []
    with translate_errors(uri):
        found = connect(uri).search_model_versions(f"name = '{name}'")
    champion = champion_version(name)
    numbers = sorted((int(one.version) for one in found if is_diffctl_version(one)), reverse=True)
    return [RegisteredVersion(number, number == champion) for number in numbers]


def fetch_version_files(name: str, number: int) -> VersionFiles:
    """The file and the scores of a version.

    UsageError when there is none, DiffctlError when its file is another one than was registered.
    """
    uri = tracking_uri()
    with translate_errors(uri):
        client = connect(uri)
        registered = get_version(client, name, number)
    if registered is None:
        raise UsageError(f"{name} has no version {number}")
    return VersionFiles(fetch_version_weights(client, registered), fetch_version_scores(client, registered))


def find_registered(document: ScoresDocument) -> RegisteredVersion | None:
    """The version of the model that the best of these scores is of; None where it is not registered.

    That which has these very scores; else, of several with its weights, the champion, or the newest.
    """
    scores, uri = best_model_scores(document), tracking_uri()
    name, sha256 = model_name(data_name(scores)), str(scores.cells[scores.best.cell].card.get("model_sha256"))
    with translate_errors(uri):
        client = connect(uri)
        exact = find_version(client, name, sha256, scores)
        query = f"name = '{name}' AND tags.`{MODEL_SHA256}` = '{sha256}'"
        found = [exact] if exact else client.search_model_versions(query)
    champion = champion_version(name)
    known = [RegisteredVersion(int(one.version), int(one.version) == champion) for one in found]
    return max(known, key=lambda one: (one.is_champion, one.version), default=None)
