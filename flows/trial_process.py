"""A trial of a search as a process: start, stop and outcome."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from diffusion.search.search_dir import TrialResult, read_result
from diffusion.system.errors import TEMPORARY, DiffctlError, TemporaryError
from diffusion.system.signals import StopRequest

STARTER = "DIFFCTL_SEARCH"  # the parent's id: the trial exits with it
POLL_SECONDS = 0.1


class TrialKilled(DiffctlError):
    """A foreign signal ended a trial's process."""


def run_process(
    command: Sequence[str],
    folder: Path,
    stop: StopRequest,
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] = os.environ,
    log: IO[bytes] | None = None,
) -> TrialResult | None:
    """Run the trial in `folder`, forward a stop to it, and wait for its end.

    Return how the trial ended, None if it was stopped before. Its output goes to `log` if given. Raise
    DiffctlError, TrialKilled or TemporaryError if the process ended and the trial did not.
    """
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env={**env, STARTER: str(os.getpid())},
        stdin=None if log is None else subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        process_group=0,  # the search forwards Ctrl-C
    )
    code = _wait(process, stop)
    ended = read_result(folder)
    if ended is None and stop.signal is None:
        raise _lost(folder, code)
    return ended


def _wait(process: "subprocess.Popen[bytes]", stop: StopRequest) -> int:
    """Return the exit code of the process; forward a stop once, as SIGTERM."""
    is_stopped = False
    while True:
        try:
            return process.wait(POLL_SECONDS)
        except subprocess.TimeoutExpired:
            if stop.signal is not None and not is_stopped:
                process.send_signal(signal.SIGTERM)
                is_stopped = True


def _lost(folder: Path, code: int) -> DiffctlError:
    if code < 0:
        how = signal.Signals(-code).name
        return TrialKilled(f"the trial in {folder} ended with {how}: run the same command to resume it")
    kind = TemporaryError if code == TEMPORARY else DiffctlError
    return kind(f"the trial in {folder} ended with exit code {code}: run the same command to resume it")
