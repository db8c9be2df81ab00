"""The folder of a search, runs/search/<name>/: what it is a search of, and a folder for each trial."""

import re
import uuid
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from diffusion.layout import PARAMS, SEARCH_RUNS
from diffusion.search.config import SearchConfig
from diffusion.search.space import Point, applied, grid
from diffusion.search.trial import Ended, State
from diffusion.system.checksums import add_checksum, read_checksummed_json
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.files import write_json, write_text
from diffusion.system.section import Section, brief
from diffusion.train.config_diff import changed_fields

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
ABOUT, ENDED, LOCK = "search.json", "ended.json", "lock"
MODEL, CURVE, SCORES = "unet.safetensors", "loss.csv", "scores.json"  # of a trial


class About(Section):
    """What a search is of: its key in MLflow, and all that its trials share."""

    key: Annotated[str, Field(min_length=1, max_length=100)]
    data_digest: Annotated[str, Field(max_length=200)]
    settings: dict[str, Any]
    search: dict[str, Any]


class _Ended(Section):
    state: State
    value: float | None = None
    reason: Annotated[str, Field(max_length=2000)] = ""


def folder_of(name: str) -> Path:
    """The search's folder; UsageError for what is no name."""
    if not NAME.fullmatch(name):
        raise UsageError(
            f"no search can be called {brief(name)}: letters, digits, dots, - and _, at most 100"
        )
    return SEARCH_RUNS / name


def open_search(folder: Path, section: SearchConfig, settings: dict[str, Any], data_digest: str) -> About:
    """What the folder is a search of, written where it is new.

    `settings` are the whole configuration with the search's first point, so that the values that params.yaml
    has for the fields which are searched over do not matter. UsageError where they, the data or the section
    are others than before: more `trials` alone go on. The caller holds the folder's lock.
    """
    search = section.model_dump(mode="json", exclude={"trials"})
    about = About(key=uuid.uuid4().hex, data_digest=data_digest, settings=settings, search=search)
    try:
        known = read_checksummed_json(folder / ABOUT, About)
    except FileNotFoundError:
        write_json(folder / ABOUT, add_checksum(about.model_dump()))
        return about
    before, now = (one.model_dump(exclude={"key"}) for one in (known, about))
    if changed := changed_fields(before, now):
        raise UsageError(
            f"{folder} is a search of other settings ({', '.join(changed[:3])}): give this one another "
            "--name, or remove that folder; trainings that are finished stay in runs/train"
        )
    return known


def known_searches() -> list[About]:
    """What the folders in runs/search/ are searches of; DiffctlError for one that is damaged."""
    return [read_checksummed_json(path, About) for path in sorted(SEARCH_RUNS.glob(f"*/{ABOUT}"))]


def first_settings(values: dict[str, Any], section: SearchConfig) -> dict[str, Any]:
    """The plain values of params.yaml with the search's first point."""
    return applied(values, grid(section)[0])


def trial_folder(folder: Path, number: int) -> Path:
    """Where a trial's parameters, model, images and scores lie."""
    return folder / "trials" / f"{number:05d}"


def write_trial(folder: Path, values: dict[str, Any], point: Point) -> Path:
    """Write a trial's params.yaml into its folder; returns its place."""
    import yaml

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / PARAMS.name
    write_text(path, yaml.safe_dump(applied(values, point), sort_keys=False, allow_unicode=True))
    return path


def write_ended(folder: Path, ended: Ended) -> None:
    """Say in a trial's folder how it ended: the last thing that its process does."""
    write_json(
        folder / ENDED, add_checksum({"state": ended.state, "value": ended.value, "reason": ended.reason})
    )


def read_ended(folder: Path) -> Ended | None:
    """How the trial in the folder ended; None where it has not, or where the file is damaged."""
    try:
        said = read_checksummed_json(folder / ENDED, _Ended)
    except (FileNotFoundError, DiffctlError):
        return None  # the trial is made again from what is kept of it
    return Ended(said.state, said.value, said.reason)
