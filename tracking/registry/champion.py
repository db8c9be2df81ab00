"""The champion for those who hold on to it: which version it is, and all of it at once."""

from pathlib import Path
from typing import NamedTuple

from diffusion.protocol.scores import ScoresDocument
from diffusion.system.errors import TemporaryError
from tracking.registry.model_registry import fetch_champion, fetch_champion_scores, find_champion
from tracking.store import connect, tracking_uri, translate_errors


class Champion(NamedTuple):
    """A version, its model's file in the cache, and the scores that it was registered with."""

    version: int
    file: Path
    scores: ScoresDocument


def champion_version(name: str) -> int | None:
    """The version that is champion now; None where there is none."""
    uri = tracking_uri()
    with translate_errors(uri):
        found = find_champion(connect(uri), name)
    return int(found.version) if found else None


def fetch_champion_files(name: str) -> Champion:
    """The champion's version, file and scores, which belong together.

    UsageError when there is none, DiffctlError when its file is another one than was registered,
    TemporaryError when the title went to another version meanwhile.
    """
    before = champion_version(name)
    file, scores = fetch_champion(name), fetch_champion_scores(name)
    after = champion_version(name)
    if before is None or before != after:
        raise TemporaryError(f"the champion of {name} changed while it was fetched: try again")
    return Champion(before, file, scores)
