"""The trials of a search as they run: their parameters, their messages and their failures."""

from pathlib import Path
from typing import Any

import typer

from cli.stages.trial import trial_command
from diffusion.config import load
from diffusion.search.search_config import describe_point
from diffusion.search.search_dir import (
    Trial,
    TrialResult,
    read_result,
    trial_dir,
    write_result,
    write_trial_params,
)
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.signals import stop_request
from flows.trial_process import run_process

MAX_FAILURES = 3  # in a row, which the settings alone do not explain


class Trials:
    """The `total` trials of the search in `folder`, with the `values` of params.yaml."""

    def __init__(self, folder: Path, values: dict[str, Any], total: int) -> None:
        self._folder, self._values, self._total, self._failures = folder, values, total, 0

    def begin(self, trial: Trial) -> TrialResult | None:
        """Write the params.yaml of the trial; return its result if it has one already or is invalid."""
        folder = trial_dir(self._folder, trial.number)
        self._print(trial.number, f": {describe_point(trial.point)}")
        if (result := read_result(folder)) is not None:
            return result
        path = write_trial_params(folder, self._values, trial.point)
        try:
            load(path)  # a point within ranges may be an invalid configuration
        except UsageError as error:
            result = TrialResult("failed", reason=str(error))
            write_result(folder, result)
        return result

    def end(self, number: int, result: TrialResult) -> None:
        """Report a failed trial; DiffctlError after several failures in a row."""
        self._failures = self._failures + 1 if result.state == "failed" else 0
        if result.state == "failed":
            typer.echo(f"trial {number + 1} failed: {result.reason}", err=True)
        if self._failures >= MAX_FAILURES:
            raise DiffctlError(
                f"{MAX_FAILURES} trials in a row failed, the last because {result.reason}: correct that, "
                f"remove {trial_dir(self._folder, number)} and run the search again"
            )

    def end_parallel(self, number: int, result: TrialResult) -> None:
        """Report the end of a trial that ran in parallel with others, then do as `end`."""
        if result.state != "failed":
            value = "" if result.value is None else f": {result.value:.5g}"
            self._print(number, f" is {result.state}{value}")
        self.end(number, result)

    def run(self, trial: Trial) -> TrialResult:
        """Run the trial in a child process, which frees its memory. Interrupted on a signal, after a save."""
        result = self.begin(trial)
        if result is None:
            folder = trial_dir(self._folder, trial.number)
            with stop_request() as stop:
                result = run_process(trial_command(folder), folder, stop)
                stop.raise_if_set()
            assert result is not None, "it was not stopped"
        self.end(trial.number, result)
        return result

    def _print(self, number: int, text: str) -> None:
        typer.echo(f"trial {number + 1} of {self._total}{text}", err=True)
