"""The directory of a search, runs/search/NAME/: its settings, and a directory for each trial."""

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import ConfigDict, Field

from diffusion.layout import PARAMS, SEARCH_RUNS, VERDICT_RUNS
from diffusion.search.search_config import Point, applied
from diffusion.system.checksums import add_checksum, read_checksummed_json
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.files import write_json, write_text
from diffusion.system.params import changed_fields
from diffusion.system.section import Section, brief
from diffusion.trials.trial_inputs import changed_inputs

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
ABOUT, RESULT, ELAPSED, LOCK = "search.json", "ended.json", "elapsed.json", "lock"
MODEL, CURVE, SCORES = "model.safetensors", "loss.csv", "scores.json"  # of a trial

State = Literal["running", "done", "pruned", "failed"]


@dataclass(frozen=True)
class Trial:
    """One training of a search.

    `number` counts from 0, `value` is the score (lower is better) if the trial is done, `reports` has the
    validation loss by step, `reason` is why the trial failed.
    """

    number: int
    point: Point
    state: State = "running"
    value: float | None = None
    reports: dict[int, float] = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True)
class TrialResult:
    """The final state of a trial: its value if it is done, the reason if it failed."""

    state: State
    value: float | None = None
    reason: Annotated[str, Field(max_length=2000)] = ""


@dataclass(frozen=True)
class Elapsed:
    """The duration of all processes of a trial, and whether they contain its whole training.

    A training that a trial resumes from the work of another command is not whole.
    """

    seconds: float = 0.0
    is_full: bool = False


class About(Section):
    """The settings of a search or a verdict: its key in MLflow, and everything that its trials share.

    `inputs` are those of each trial, or of each training code in a search, as they were when it began; none
    if an older version wrote it. `bases` are the SHA-256 of the files of base models by name.
    """

    model_config = ConfigDict(extra="ignore")  # an older version stored other fields

    key: Annotated[str, Field(min_length=1, max_length=100)]
    settings: dict[str, Any]
    search: dict[str, Any]
    bases: dict[str, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = Field(default_factory=dict)
    inputs: list[dict[str, Any]] = Field(default_factory=list)


def search_dir(name: str) -> Path:
    """Return the directory of the search; UsageError for an invalid name."""
    if not NAME.fullmatch(name):
        raise UsageError(f"--name {brief(name)}: give at most 100 letters, digits, -, _ and dots inside")
    return SEARCH_RUNS / name


def find_about(folder: Path) -> About | None:
    """Return the settings stored in the directory; None if it is new."""
    try:
        return read_checksummed_json(folder / ABOUT, About)
    except FileNotFoundError:
        return None


def open_about(folder: Path, about: About) -> About:
    """Return the settings stored in the directory, by default these. The caller holds its lock."""
    if (known := find_about(folder)) is None:
        write_json(folder / ABOUT, add_checksum(about.model_dump()))
    return known or about


def refuse_other_search(folder: Path, known: About, now: About) -> None:
    """Raise UsageError if the search in the directory has other settings or inputs than `now`.

    Its settings have the first point of the search, so that the values of searched fields in params.yaml do
    not matter. The number of trials is no part of them: it may increase.
    """
    changed = changed_fields({"search": known.search}, {"search": now.search})  # they change settings too
    changed = changed or changed_fields(known.settings, now.settings)
    if changed := changed or changed_inputs(known.inputs, now.inputs):
        fields = ", ".join(changed[:3])
        raise UsageError(f"{folder} is a search with other settings ({fields}): use another --name")


def known_searches() -> list[About]:
    """Return the settings of all searches and verdicts; DiffctlError if a file is damaged."""
    paths = [path for root in (SEARCH_RUNS, VERDICT_RUNS) for path in sorted(root.glob(f"*/{ABOUT}"))]
    return [read_checksummed_json(path, About) for path in paths]


def trial_dir(folder: Path, number: int) -> Path:
    """Return the directory with a trial's parameters, model, images and scores."""
    return folder / "trials" / f"{number:05d}"


def write_trial_params(folder: Path, values: dict[str, Any], point: Point) -> Path:
    """Write a trial's params.yaml and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / PARAMS.name
    write_text(path, yaml.safe_dump(applied(values, point), sort_keys=False, allow_unicode=True))
    return path


def write_result(folder: Path, result: TrialResult) -> None:
    """Write the result of a trial, which is the last step of its process."""
    write_json(folder / RESULT, add_checksum(asdict(result)))


def read_result(folder: Path) -> TrialResult | None:
    """Return the result of the trial in the directory; None if it has none or the file is damaged."""
    try:
        return read_checksummed_json(folder / RESULT, TrialResult)
    except (FileNotFoundError, DiffctlError):
        return None  # the trial is repeated from its saved state


def write_elapsed(folder: Path, elapsed: Elapsed) -> None:
    """Write what a trial has taken so far; it stays when its result is removed."""
    write_json(folder / ELAPSED, add_checksum(asdict(elapsed)))


def read_elapsed(folder: Path) -> Elapsed:
    """Return what the trial in the directory has taken; nothing if it was not written or is damaged."""
    try:
        return read_checksummed_json(folder / ELAPSED, Elapsed)
    except (FileNotFoundError, DiffctlError):
        return Elapsed()
