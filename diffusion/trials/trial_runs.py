"""A trial of a search or a verdict: its folder, its result, and the loop that runs trials.

The folder of a search, runs/search/NAME/, or of a verdict, runs/verdict/KEY/, has the file search.json and a
folder for each trial.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import ConfigDict, Field

from diffusion.layout import PARAMS, SEARCH_RUNS, VERDICT_RUNS
from diffusion.system.checksums import add_checksum, read_checksummed_json
from diffusion.system.errors import DiffctlError
from diffusion.system.files import write_json, write_text
from diffusion.system.params import with_fields
from diffusion.system.section import Section

ABOUT, RESULT, ELAPSED, LOCK = "search.json", "ended.json", "elapsed.json", "lock"
MODEL, CURVE, SCORES = "model.safetensors", "loss.csv", "scores.json"  # of a trial

State = Literal["running", "done", "pruned", "failed"]


@dataclass(frozen=True)
class Trial:
    """One training of a search, at a `point`: values by the dotted names of fields.

    `number` counts from 0, `value` is the score (lower is better) if the trial is done, `reports` has the
    validation loss by step, `reason` is why the trial failed.
    """

    number: int
    point: Mapping[str, Any] = field(default_factory=dict)
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


def known_searches() -> list[About]:
    """Return the settings of all searches and verdicts; DiffctlError if a file is damaged."""
    paths = [path for root in (SEARCH_RUNS, VERDICT_RUNS) for path in sorted(root.glob(f"*/{ABOUT}"))]
    return [read_checksummed_json(path, About) for path in paths]


def trial_dir(folder: Path, number: int) -> Path:
    """Return the directory with a trial's parameters, model, images and scores."""
    return folder / "trials" / f"{number:05d}"


def write_trial_params(folder: Path, values: dict[str, Any], point: Mapping[str, Any]) -> Path:
    """Write a trial's params.yaml, which has the values changed by its point, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / PARAMS.name
    write_text(path, yaml.safe_dump(with_fields(values, point), sort_keys=False, allow_unicode=True))
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


class TrialRunner:
    """Runs one trial at a time by calling `run`. A subclass may run several."""

    def __init__(self, run: Callable[[Trial], TrialResult]) -> None:
        self._run = run
        self._started: list[Trial] = []

    def room(self) -> int:
        """Return how many trials may run now, at least one."""
        return 1

    def start(self, trial: Trial) -> None:
        """Start a trial, or resume it."""
        self._started.append(trial)

    def ended(self) -> list[tuple[int, TrialResult]]:
        """Return the numbers and results of trials that ended since the last call; wait a while for one."""
        trial = self._started.pop()
        return [(trial.number, self._run(trial))]


def run_trials(
    runner: TrialRunner,
    propose: Callable[[set[int]], Trial | None],
    end: Callable[[int, TrialResult], None] = lambda number, result: None,
) -> None:
    """Run the trials that `propose` returns, given the numbers of those that run, until it returns None.

    `end` receives each result. An exception of them or of the runner, such as Interrupted, ends the loop; the
    same call resumes the trials, since each has its saved state and its result in its folder.
    """
    running: set[int] = set()
    while True:
        while len(running) < runner.room() and (trial := propose(running)) is not None:
            running.add(trial.number)
            runner.start(trial)
        if not running:
            return
        for number, result in runner.ended():
            end(number, result)
            running.discard(number)
