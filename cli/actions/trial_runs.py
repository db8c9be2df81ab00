"""What a search does before and after each of its trials, and what it says of them."""

from pathlib import Path
from typing import Any

import typer

from cli.stages.trial import command
from diffusion.config import load
from diffusion.search.folder import read_ended, trial_folder, write_ended, write_trial
from diffusion.search.space import spoken
from diffusion.search.trial import Ended, Trial
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.signals import stop_request
from flows.trial_process import run_process

MAX_FAILURES = 3  # in a row, after which something else than the settings is wrong


class Trials:
    """The trials of the search in `folder`, `total` in all, by the `values` of params.yaml."""

    def __init__(self, folder: Path, values: dict[str, Any], total: int) -> None:
        self._folder, self._values, self._total, self._failures = folder, values, total, 0

    def begin(self, trial: Trial) -> Ended | None:
        """Write the trial's params.yaml; how it ended, where it has ended before or cannot begin."""
        folder = trial_folder(self._folder, trial.number)
        self._say(trial.number, f": {spoken(trial.point)}")
        if (ended := read_ended(folder)) is not None:
            return ended
        path = write_trial(folder, self._values, trial.point)
        try:
            load(path)  # between the ends of ranges there may be what is impossible
        except UsageError as error:
            ended = Ended("failed", reason=str(error))
            write_ended(folder, ended)
        return ended

    def end(self, number: int, ended: Ended) -> None:
        """Say that the trial failed, where it did; DiffctlError where several have, one after the other."""
        self._failures = self._failures + 1 if ended.state == "failed" else 0
        if ended.state == "failed":
            typer.echo(f"trial {number + 1} failed: {ended.reason}", err=True)
        if self._failures >= MAX_FAILURES:
            raise DiffctlError(
                f"{MAX_FAILURES} trials in a row failed, the last since {ended.reason}: put that right, "
                f"remove {trial_folder(self._folder, number)} and run it again"
            )

    def end_beside(self, number: int, ended: Ended) -> None:
        """As `end`, for trials whose lines are not under their beginnings."""
        if ended.state != "failed":
            value = "" if ended.value is None else f": {ended.value:.5g}"
            self._say(number, f" is {ended.state}{value}")
        self.end(number, ended)

    def make(self, trial: Trial) -> Ended:
        """Make the trial here, in a process of its own, whose memory goes with it.

        Interrupted after it saved, on a signal.
        """
        ended = self.begin(trial)
        if ended is None:
            folder = trial_folder(self._folder, trial.number)
            with stop_request() as stop:
                ended = run_process(command(folder), folder, stop)
                stop.raise_if_set()
            assert ended is not None, "it was not stopped"
        self.end(trial.number, ended)
        return ended

    def _say(self, number: int, what: str) -> None:
        typer.echo(f"trial {number + 1} of {self._total}{what}", err=True)
