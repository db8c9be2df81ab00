"""Registered versions for those who choose one: which there are, and all of one at once."""

from pathlib import Path
from typing import NamedTuple

from diffusion.choice.model_cells import best_model_scores
from diffusion.protocol.scores import ScoresDocument
from diffusion.system.errors import UsageError
from tracking.champion import champion_version
from tracking.names import MODEL_SHA256, model_name
from tracking.runs import data_name
from tracking.store import connect, database_file, failures, tracking_uri
from tracking.versions import find_version, get_version, is_ours, scores_of, weights_of


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


def version_of(document: ScoresDocument) -> Registered | None:
    """The version of the model that the best of these scores is of; None where it is not registered.

    That which has these very scores; else, of several with its weights, the champion, or the newest.
    """
    scores, uri = best_model_scores(document), tracking_uri()
    name, sha256 = model_name(data_name(scores)), str(scores.cells[scores.best.cell].card.get("model_sha256"))
    with failures(uri):
        client = connect(uri)
        exact = find_version(client, name, sha256, scores)
        query = f"name = '{name}' AND tags.`{MODEL_SHA256}` = '{sha256}'"
        found = [exact] if exact else client.search_model_versions(query)
    champion = champion_version(name)
    known = [Registered(int(one.version), int(one.version) == champion) for one in found]
    return max(known, key=lambda one: (one.is_champion, one.version), default=None)
